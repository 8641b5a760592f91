//! NCCL: without a GPU, that the error says what to do; with one, every call of one rank.

use std::time::Duration;

use collectives::{Collective, CollectiveError, DeviceCollective, Kind, Launch, NumbersMut, Reduction, open};
use cudarc::driver::{CudaContext, result};

fn start() -> Result<Box<dyn Collective>, CollectiveError> {
    let timeout = Duration::from_secs(30);
    open(Kind::Nccl, &Launch { rank: 0, size: 1, timeout, device: 0, rendezvous: None })
}

#[test]
fn one_rank_computes_or_the_error_says_what_is_missing() {
    let ranks = match start() {
        Ok(ranks) => ranks,
        Err(CollectiveError::Unavailable { engine, reason }) => {
            let advice = match engine {
                "NCCL" => ["install", "libnccl.so", "run with NCCL_DEBUG=WARN"],
                _ => ["install the NVIDIA driver", "libcuda.so", "look at nvidia-smi"],
            };
            assert!(advice.iter().any(|words| reason.contains(words)), "{engine}: {reason}");
            eprintln!("no GPU here: {engine}: {reason}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    assert_eq!((ranks.rank(), ranks.size()), (0, 1));
    assert_eq!(ranks.on_device().unwrap().device(), 0);
    for reduction in [Reduction::Sum, Reduction::Max, Reduction::Min] {
        let mut numbers = [1.5_f32, -0.0, f32::INFINITY, -3.0];
        ranks.all_reduce(NumbersMut::F32(&mut numbers), reduction).unwrap();
        assert_eq!(numbers.map(f32::to_bits), [1.5_f32, -0.0, f32::INFINITY, -3.0].map(f32::to_bits));
        let mut numbers = [1.5_f64, -2.0];
        ranks.all_reduce(NumbersMut::F64(&mut numbers), reduction).unwrap();
        assert_eq!(numbers, [1.5, -2.0]);
        let mut numbers = [i64::MAX, -2, 0];
        ranks.all_reduce(NumbersMut::I64(&mut numbers), reduction).unwrap();
        assert_eq!(numbers, [i64::MAX, -2, 0]);
    }
    let mut bytes = [0_u8, 255, 7];
    ranks.all_reduce(NumbersMut::U8(&mut bytes), Reduction::Max).unwrap();
    assert_eq!(bytes, [0, 255, 7]);
    ranks.all_reduce(NumbersMut::F32(&mut []), Reduction::Sum).unwrap();

    let mut all = vec![1; 9];
    assert_eq!(ranks.all_gather(b"abc", &mut all).unwrap(), [3]);
    assert_eq!(all, b"abc");
    assert_eq!(ranks.gather(0, b"", &mut all).unwrap(), [0]);
    assert!(all.is_empty());
    // More than one round.
    let mut long: Vec<u8> = (0..40_u32 << 20).map(|i| (i % 251) as u8).collect();
    let copy = long.clone();
    ranks.broadcast(0, &mut long).unwrap();
    assert!(long == copy);
    ranks.barrier().unwrap();
    in_place(ranks.on_device().unwrap());
    assert_eq!(ranks.traffic().calls, 18);
}

/// The calls on the device's own memory.
#[expect(unsafe_code, clippy::unwrap_used, reason = "they take pointers, and a failed one fails the test")]
fn in_place(ranks: &dyn DeviceCollective) {
    let context = CudaContext::new(ranks.device()).unwrap();
    context.bind_to_thread().unwrap();
    let numbers = [1.0_f32, -2.5, 3.0];
    let bytes = size_of_val(&numbers);
    let mut back = [0.0_f32; 6];
    // SAFETY: the memory holds the numbers twice, is freed at the end, and only the default stream touches it.
    unsafe {
        let memory = result::malloc_sync(2 * bytes).unwrap();
        result::memcpy_htod_sync(memory, &numbers).unwrap();
        let start = memory as *mut u8;
        ranks.all_reduce_f32(start.cast(), numbers.len(), Reduction::Sum).unwrap();
        ranks.broadcast_bytes(0, start, bytes).unwrap();
        ranks.all_gather_bytes(start, start.add(bytes), bytes).unwrap();
        ranks.synchronize().unwrap();
        result::memcpy_dtoh_sync(&mut back, memory).unwrap();
        result::free_sync(memory).unwrap();
    }
    assert_eq!(back, [1.0, -2.5, 3.0, 1.0, -2.5, 3.0]);
}
