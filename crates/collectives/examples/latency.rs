//! What a call costs: one number and 64 MB, against MPI's blocking all-reduce in the same run.
//!
//! `mpirun -n 2 latency` with a release build prints a line per measure, from rank 0.
#![expect(unsafe_code, reason = "the blocking calls it compares with are MPI's own")]
#![expect(clippy::print_stdout, reason = "it reports what it measured")]

use std::ffi::c_int;
use std::time::{Duration, Instant};

use collectives::{Collective, CollectiveError, Mpi, NumbersMut, Reduction};
use mpi::ffi;

fn main() -> Result<(), CollectiveError> {
    let ranks = Mpi::start(Duration::from_secs(30))?;
    for (len, repeats) in [(1, 2000), (1 << 10, 1000), (1 << 18, 50), (16_000_000, 8)] {
        let mut numbers = vec![1e-3_f32; len];
        let mut copy = numbers.clone();
        let mut ours = Vec::new();
        let mut blocking = Vec::new();
        let mut gathered = Vec::new();
        let mut all = Vec::new();
        // In turns, so that other load on the machine meets them all.
        for _ in 0..repeats {
            let start = Instant::now();
            ranks.all_reduce(NumbersMut::F32(&mut numbers), Reduction::Max)?;
            ours.push(start.elapsed());
            let start = Instant::now();
            reduce_blocking(&mut copy);
            blocking.push(start.elapsed());
            let start = Instant::now();
            ranks.all_gather(bytemuck::cast_slice(&numbers), &mut all)?;
            gathered.push(start.elapsed());
        }
        if ranks.rank() == 0 {
            let bytes = 4.0 * len as f64;
            for (name, times) in [("all_reduce", ours), ("MPI_Allreduce", blocking), ("all_gather", gathered)]
            {
                let median = median(times);
                let rate = bytes / median / 1e9;
                println!("{len:>9} f32  {name:<14} {:>10.1} us  {rate:>7.3} GB/s", median * 1e6);
            }
        }
    }
    Ok(())
}

fn reduce_blocking(numbers: &mut [f32]) {
    let mut result = vec![0.0_f32; numbers.len()];
    // SAFETY: MPI is started, both buffers hold the count of floats, and the world is valid.
    let code = unsafe {
        ffi::MPI_Allreduce(
            numbers.as_ptr().cast(),
            result.as_mut_ptr().cast(),
            numbers.len() as c_int,
            ffi::RSMPI_FLOAT,
            ffi::RSMPI_MAX,
            ffi::RSMPI_COMM_WORLD,
        )
    };
    assert_eq!(code, ffi::MPI_SUCCESS as c_int, "MPI_Allreduce");
    numbers.copy_from_slice(&result);
}

/// In seconds.
fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}
