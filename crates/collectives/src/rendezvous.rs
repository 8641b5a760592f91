//! Ranks meet over TCP: rank 0 listens, checks who comes, and gives everybody the same bytes.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::ranks;
use crate::meeting::Meeting;
use crate::{CollectiveError, Rendezvous};

const MAGIC: [u8; 8] = *b"lmm-sae\n";
const VERSION: u32 = 1;
const HELLO_BYTES: usize = 8 + 3 * 4;
/// How long a connection may take to say who it is. What is no rank of a job, such as a port scanner, holds the others up for so long.
const HELLO_TIME: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(20);
/// How much longer than rank 0 the others wait, so that rank 0 can tell them who is missing.
const GRACE: Duration = Duration::from_secs(2);

/// First byte of rank 0's answer.
const WELCOME: u8 = 0;
const REFUSED: u8 = 1;

/// Meets the other ranks. `gift` of rank 0 is what every rank gets.
pub(crate) fn meet(
    place: &Rendezvous,
    rank: usize,
    size: usize,
    timeout: Duration,
    gift: &[u8],
) -> Result<(Vec<u8>, Meeting), CollectiveError> {
    assert!(rank < size, "rank {rank} of {size}: ranks run from 0 to size - 1");
    let guest = Guest { place, rank, size, end: Instant::now() + timeout };
    if rank == 0 { guest.host(gift) } else { guest.visit() }
}

struct Guest<'a> {
    place: &'a Rendezvous,
    rank: usize,
    size: usize,
    end: Instant,
}

impl Guest<'_> {
    fn error(&self, problem: String, missing: Vec<usize>) -> CollectiveError {
        let (address, rank, size) = (self.place.to_string(), self.rank, self.size);
        CollectiveError::Rendezvous { address, problem, missing, rank, size }
    }

    fn host(&self, gift: &[u8]) -> Result<(Vec<u8>, Meeting), CollectiveError> {
        let port = self.place.port;
        // All addresses, since the name under which others know this machine may not be one that it has itself.
        let listener = TcpListener::bind(("::", port)).or_else(|_| TcpListener::bind(("0.0.0.0", port)));
        let listener = listener.and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        let listener = listener.map_err(|error| {
            let problem = format!(
                "it cannot listen on port {port} ({error}): set LMM_SAE_PORT to a free port, on all ranks"
            );
            self.error(problem, Vec::new())
        })?;
        let mut guests: Vec<Option<TcpStream>> = (1..self.size).map(|_| None).collect();
        while missing(&mut guests) {
            match listener.accept() {
                Ok((stream, _)) => self.let_in(stream, &mut guests)?,
                Err(_) if Instant::now() < self.end => thread::sleep(PAUSE),
                Err(_) => {
                    let missing: Vec<usize> =
                        (1..self.size).filter(|rank| guests[rank - 1].is_none()).collect();
                    let problem = format!(
                        "{} did not come in time: look whether they run, and whether they reach this port",
                        ranks(&missing)
                    );
                    refuse_all(&mut guests, &problem);
                    return Err(self.error(problem, missing));
                }
            }
        }
        let mut streams: Vec<TcpStream> = guests.into_iter().flatten().collect();
        let mut answer = vec![WELCOME];
        answer.extend_from_slice(&(gift.len() as u32).to_le_bytes());
        answer.extend_from_slice(gift);
        for (rank, stream) in (1..).zip(&mut streams) {
            stream.write_all(&answer).map_err(|error| {
                self.error(format!("rank {rank} left ({error}): look at its log"), vec![rank])
            })?;
        }
        let links = (1..).zip(streams).collect();
        Ok((gift.to_vec(), Meeting::new(0, self.size, links).map_err(|error| self.broken(&error))?))
    }

    /// Takes in a rank that fits, refuses one that does not, and forgets what is none.
    fn let_in(&self, mut stream: TcpStream, guests: &mut [Option<TcpStream>]) -> Result<(), CollectiveError> {
        let mut hello = [0; HELLO_BYTES];
        let read = stream
            .set_nonblocking(false)
            .and_then(|()| stream.set_read_timeout(Some(HELLO_TIME)))
            .and_then(|()| stream.read_exact(&mut hello));
        if read.is_err() || hello[..8] != MAGIC {
            return Ok(());
        }
        let [version, rank, size] = numbers(&hello);
        let problem = if version != VERSION {
            format!(
                "rank {rank} speaks version {version} of the protocol, this one {VERSION}: run one program on all ranks"
            )
        } else if size as usize != self.size {
            format!(
                "rank {rank} is one of {size}, rank 0 one of {}: give all ranks the same world size",
                self.size
            )
        } else if rank == 0 || rank >= size {
            format!("a second rank {rank} of {size} came: give each process a rank of its own")
        } else if guests[rank as usize - 1].as_ref().is_some_and(|stream| !has_left(stream)) {
            format!(
                "rank {rank} came twice: give each process a rank of its own, and end older runs on this port"
            )
        } else {
            guests[rank as usize - 1] = Some(stream);
            return Ok(());
        };
        refuse(&mut stream, &problem);
        refuse_all(guests, &problem);
        Err(self.error(problem, Vec::new()))
    }

    fn visit(&self) -> Result<(Vec<u8>, Meeting), CollectiveError> {
        let mut stream = self.reach()?;
        let mut hello = MAGIC.to_vec();
        for number in [VERSION, self.rank as u32, self.size as u32] {
            hello.extend_from_slice(&number.to_le_bytes());
        }
        let left = self.end.saturating_duration_since(Instant::now()) + GRACE;
        let answer = stream
            .set_read_timeout(Some(left))
            .and_then(|()| stream.write_all(&hello))
            .and_then(|()| read_answer(&mut stream));
        match answer {
            Ok((WELCOME, gift)) => {
                let meeting = Meeting::new(self.rank, self.size, vec![(0, stream)]);
                Ok((gift, meeting.map_err(|error| self.broken(&error))?))
            }
            Ok((_, problem)) => Err(self.error(String::from_utf8_lossy(&problem).into_owned(), Vec::new())),
            Err(error) => Err(self.broken(&error)),
        }
    }

    fn reach(&self) -> Result<TcpStream, CollectiveError> {
        let Rendezvous { address, port } = self.place;
        let mut last = String::new();
        while Instant::now() < self.end {
            // Names are looked up anew: a machine's may come into being while its job starts.
            match (address.as_str(), *port).to_socket_addrs() {
                Ok(candidates) => {
                    for candidate in candidates {
                        match TcpStream::connect_timeout(&candidate, HELLO_TIME) {
                            // On one machine, a port that nobody listens on can be one's own, and the connection one to oneself.
                            Ok(stream) if is_own(&stream) => {}
                            Ok(stream) => return Ok(stream),
                            Err(error) => last = error.to_string(),
                        }
                    }
                }
                Err(error) => last = error.to_string(),
            }
            thread::sleep(PAUSE);
        }
        let problem = format!(
            "rank 0 cannot be reached ({last}): look whether it runs, whether MASTER_ADDR is its machine, and whether the port is open"
        );
        Err(self.error(problem, vec![0]))
    }

    fn broken(&self, error: &io::Error) -> CollectiveError {
        self.error(format!("the connection broke ({error}): look at the log of rank 0"), Vec::new())
    }
}

/// Whether a rank has yet to come, or left again: a launcher may start it anew.
fn missing(guests: &mut [Option<TcpStream>]) -> bool {
    if guests.iter().all(Option::is_some) {
        for guest in guests.iter_mut() {
            guest.take_if(|stream| has_left(stream));
        }
    }
    guests.iter().any(Option::is_none)
}

/// Whether the connection of a rank that waits for its answer is closed or broken.
fn has_left(stream: &TcpStream) -> bool {
    let peeked = stream.set_nonblocking(true).and_then(|()| stream.peek(&mut [0]));
    let left = match peeked {
        Ok(bytes) => bytes == 0,
        Err(error) => !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    };
    left || stream.set_nonblocking(false).is_err()
}

fn is_own(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(other)) if own == other)
}

fn numbers(hello: &[u8; HELLO_BYTES]) -> [u32; 3] {
    [8, 12, 16].map(|start| bytemuck::pod_read_unaligned::<u32>(&hello[start..start + 4]).to_le())
}

fn refuse(stream: &mut TcpStream, problem: &str) {
    let mut answer = vec![REFUSED];
    answer.extend_from_slice(&(problem.len() as u32).to_le_bytes());
    answer.extend_from_slice(problem.as_bytes());
    // Who has left by now needs no answer.
    let _ = stream.write_all(&answer);
}

fn refuse_all(guests: &mut [Option<TcpStream>], problem: &str) {
    for stream in guests.iter_mut().flatten() {
        refuse(stream, problem);
    }
}

fn read_answer(stream: &mut TcpStream) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let len = u32::from_le_bytes([head[1], head[2], head[3], head[4]]);
    if len > 1 << 16 {
        return Err(io::Error::other("what listens there is no rank 0"));
    }
    let mut bytes = vec![0; len as usize];
    stream.read_exact(&mut bytes)?;
    Ok((head[0], bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meeting::Roll;

    const SHORT: Duration = Duration::from_millis(500);
    const LONG: Duration = Duration::from_secs(20);

    /// A port that was free a moment ago.
    fn place() -> Rendezvous {
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        Rendezvous { address: "127.0.0.1".into(), port }
    }

    type Met = Result<(Vec<u8>, Meeting), CollectiveError>;

    /// What each of the processes, given as (rank, size), meets.
    fn all_meet(processes: &[(usize, usize)], timeout: Duration) -> Vec<Met> {
        let place = place();
        thread::scope(|scope| {
            let start = |(rank, size): &(usize, usize)| {
                let (place, rank, size) = (&place, *rank, *size);
                let gift = if rank == 0 { b"the id".as_slice() } else { b"" };
                scope.spawn(move || meet(place, rank, size, timeout, gift))
            };
            let running: Vec<_> = processes.iter().map(start).collect();
            running.into_iter().map(|process| process.join().unwrap()).collect()
        })
    }

    fn problem(met: &Met) -> (String, Vec<usize>) {
        match met {
            Err(CollectiveError::Rendezvous { problem, missing, .. }) => (problem.clone(), missing.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_get_what_rank_0_gives() {
        for met in all_meet(&[(2, 3), (1, 3), (0, 3)], LONG) {
            assert_eq!(met.unwrap().0, b"the id");
        }
        assert_eq!(all_meet(&[(0, 1)], LONG)[0].as_ref().unwrap().0, b"the id");
    }

    #[test]
    fn ranks_that_do_not_come_are_named_to_all_that_came() {
        let met = all_meet(&[(0, 4), (2, 4)], SHORT);
        assert_eq!(problem(&met[0]).1, [1, 3]);
        for met in &met {
            assert!(problem(met).0.starts_with("ranks 1 and 3 did not come in time"), "{met:?}");
        }
    }

    #[test]
    fn without_rank_0_the_others_say_so() {
        let met = all_meet(&[(1, 2)], SHORT);
        let (words, missing) = problem(&met[0]);
        assert_eq!(missing, [0]);
        assert!(words.contains("rank 0 cannot be reached") && words.contains("MASTER_ADDR"), "{words}");
    }

    #[test]
    fn other_world_sizes_and_doubled_ranks_are_refused() {
        let met = all_meet(&[(0, 3), (1, 2)], LONG);
        for met in &met {
            assert!(problem(met).0.starts_with("rank 1 is one of 2, rank 0 one of 3"), "{met:?}");
        }
        let met = all_meet(&[(0, 3), (1, 3), (1, 3)], LONG);
        for met in &met {
            assert!(problem(met).0.starts_with("rank 1 came twice"), "{met:?}");
        }
    }

    #[test]
    fn a_rank_that_left_may_come_again() {
        let place = place();
        let hello = |rank: u32| {
            let mut stream = loop {
                match TcpStream::connect((place.address.as_str(), place.port)) {
                    Ok(stream) => break stream,
                    Err(_) => thread::sleep(PAUSE),
                }
            };
            let numbers = [VERSION, rank, 3].map(u32::to_le_bytes);
            stream.write_all(&[&MAGIC[..], numbers.as_flattened()].concat()).unwrap();
            // Taken in before it goes.
            thread::sleep(10 * PAUSE);
        };
        let met = thread::scope(|scope| {
            let visit = |rank| {
                scope.spawn({
                    let place = &place;
                    move || meet(place, rank, 3, LONG, b"x")
                })
            };
            let host = visit(0);
            // That 2 has left is noticed when all seem to be there, that 1 has when it comes again.
            hello(2);
            hello(1);
            let first = visit(1);
            thread::sleep(10 * PAUSE);
            let second = visit(2);
            [host, first, second].map(|rank| rank.join().unwrap())
        });
        for met in met {
            assert_eq!(met.unwrap().0, b"x");
        }
    }

    #[test]
    fn what_is_no_rank_is_ignored() {
        let place = place();
        let met = thread::scope(|scope| {
            let host = scope.spawn(|| meet(&place, 0, 2, LONG, b"x"));
            let mut stray = loop {
                match TcpStream::connect((place.address.as_str(), place.port)) {
                    Ok(stream) => break stream,
                    Err(_) => thread::sleep(PAUSE),
                }
            };
            stray.write_all(b"GET / HTTP/1.1\r\nHost: somewhere\r\n\r\n").unwrap();
            let guest = scope.spawn(|| meet(&place, 1, 2, LONG, b""));
            [host.join().unwrap(), guest.join().unwrap()]
        });
        for met in met {
            assert_eq!(met.unwrap().0, b"x");
        }
    }

    #[test]
    fn a_taken_port_is_told() {
        let place = place();
        let _holder =
            TcpListener::bind(("::", place.port)).or_else(|_| TcpListener::bind(("0.0.0.0", place.port)));
        let (words, _) = problem(&meet(&place, 0, 2, SHORT, b""));
        assert!(words.contains("set LMM_SAE_PORT to a free port"), "{words}");
    }

    #[test]
    fn the_roll_names_who_does_not_answer() {
        let mut meetings: Vec<Meeting> =
            all_meet(&[(0, 4), (1, 4), (2, 4), (3, 4)], LONG).into_iter().map(|met| met.unwrap().1).collect();
        // Rank 3 is stuck: its connection stays open, and nobody reads from it.
        let rolls: Vec<Roll> = thread::scope(|scope| {
            let running: Vec<_> =
                meetings[..3].iter_mut().map(|meeting| scope.spawn(|| meeting.call(17))).collect();
            running.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for roll in rolls {
            assert_eq!(roll, Roll { missing: vec![3], answered: 2 });
        }
    }

    #[test]
    fn who_dies_is_known_to_all_and_who_leaves_is_not_dead() {
        let mut meetings: Vec<Meeting> =
            all_meet(&[(0, 3), (1, 3), (2, 3)], LONG).into_iter().map(|met| met.unwrap().1).collect();
        drop(meetings.pop());
        let end = Instant::now() + LONG;
        for rank in [0, 1] {
            let meeting = &mut meetings[rank];
            while meeting.lost() != [2] {
                assert!(Instant::now() < end, "rank {rank} does not know");
                meeting.listen();
                thread::sleep(PAUSE);
            }
        }

        let mut meetings: Vec<Meeting> =
            all_meet(&[(0, 2), (1, 2)], LONG).into_iter().map(|met| met.unwrap().1).collect();
        let mut leaving = meetings.pop().unwrap();
        leaving.leave();
        drop(leaving);
        thread::sleep(SHORT);
        meetings[0].listen();
        assert!(meetings[0].lost().is_empty());
    }
}
