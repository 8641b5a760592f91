//! [`Meeting`]: the connections that ranks met over, kept open to tell who died, and who is missing after a time-out.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

/// How long rank 0 waits for answers.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much longer the others wait for what rank 0 makes of them.
const GRACE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(5);

const HERE: u32 = 1;
const VERDICT: u32 = 2;
const GOODBYE: u32 = 3;
const HEAD_BYTES: usize = 8;

/// A star: rank 0 has a link to every other rank, and these have one to rank 0.
#[derive(Debug)]
pub(crate) struct Meeting {
    rank: usize,
    size: usize,
    links: Vec<Link>,
    /// The call that each rank says it is in.
    heard: Vec<Option<u64>>,
    /// The ranks that rank 0 says are missing.
    verdict: Option<Vec<usize>>,
}

#[derive(Debug)]
struct Link {
    rank: usize,
    stream: TcpStream,
    inbox: Vec<u8>,
    state: LinkState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LinkState {
    Open,
    Goodbye,
    Lost,
}

/// What a roll call found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Roll {
    pub(crate) missing: Vec<usize>,
    pub(crate) answered: usize,
}

impl Meeting {
    pub(crate) fn new(rank: usize, size: usize, links: Vec<(usize, TcpStream)>) -> io::Result<Self> {
        let open = |(rank, stream): (usize, TcpStream)| {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            Ok(Link { rank, stream, inbox: Vec::new(), state: LinkState::Open })
        };
        let links = links.into_iter().map(open).collect::<io::Result<_>>()?;
        Ok(Self { rank, size, links, heard: vec![None; size], verdict: None })
    }

    /// Takes in what others have said so far.
    pub(crate) fn listen(&mut self) {
        for link in &mut self.links {
            link.fill();
            while let Some((kind, numbers)) = link.take() {
                match kind {
                    HERE => self.heard[link.rank] = numbers.first().copied(),
                    VERDICT => self.verdict = Some(numbers.iter().map(|rank| *rank as usize).collect()),
                    _ => link.state = LinkState::Goodbye,
                }
            }
        }
    }

    /// The ranks that are known to be dead, or to be missed by rank 0. On rank 0, the others are told.
    pub(crate) fn lost(&mut self) -> Vec<usize> {
        let dead = |link: &Link| (link.state == LinkState::Lost).then_some(link.rank);
        let mut lost: Vec<usize> = self.links.iter().filter_map(dead).collect();
        if let Some(verdict) = &self.verdict {
            lost.extend(verdict.iter().filter(|rank| **rank != self.rank));
        }
        lost.sort_unstable();
        lost.dedup();
        if self.rank == 0 && !lost.is_empty() {
            self.tell_verdict(&lost);
        }
        lost
    }

    /// Whether another rank has begun a roll call.
    pub(crate) fn has_begun(&self) -> bool {
        self.heard.iter().any(Option::is_some)
    }

    /// Calls the roll in call `number`.
    pub(crate) fn call(&mut self, number: u64) -> Roll {
        for link in &mut self.links {
            link.send(HERE, &[number]);
        }
        self.heard[self.rank] = Some(number);
        let patience = if self.rank == 0 { PATIENCE } else { PATIENCE + GRACE };
        let end = Instant::now() + patience;
        while Instant::now() < end {
            self.listen();
            let heard = &self.heard;
            let all_told =
                self.links.iter().all(|link| heard[link.rank].is_some() || link.state != LinkState::Open);
            let closed = self.links.iter().all(|link| link.state != LinkState::Open);
            if closed || (self.rank == 0 && all_told) || self.verdict.is_some() {
                break;
            }
            thread::sleep(PAUSE);
        }
        let missing: Vec<usize> = if self.rank == 0 {
            let missing: Vec<usize> = (0..self.size).filter(|rank| self.heard[*rank].is_none()).collect();
            self.tell_verdict(&missing);
            missing
        } else {
            let missing = self.verdict.clone().unwrap_or_else(|| vec![0]);
            missing.into_iter().filter(|rank| *rank != self.rank).collect()
        };
        // Without rank 0, nobody knows of the rest.
        let answered = if missing == [0] { 0 } else { self.size - 1 - missing.len() };
        Roll { missing, answered }
    }

    /// Says that this rank leaves in good order.
    pub(crate) fn leave(&mut self) {
        for link in &mut self.links {
            link.send(GOODBYE, &[]);
        }
    }

    fn tell_verdict(&mut self, missing: &[usize]) {
        let numbers: Vec<u64> = missing.iter().map(|rank| *rank as u64).collect();
        for link in &mut self.links {
            link.send(VERDICT, &numbers);
        }
    }
}

impl Link {
    /// A few bytes, which the connection's buffer takes at once; what does not go is as good as a cut cable.
    fn send(&mut self, kind: u32, numbers: &[u64]) {
        let mut frame = kind.to_le_bytes().to_vec();
        frame.extend_from_slice(&(numbers.len() as u32).to_le_bytes());
        frame.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        let _ = self.stream.write_all(&frame);
    }

    fn fill(&mut self) {
        let mut bytes = [0; 4096];
        while self.state == LinkState::Open {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.state = LinkState::Lost,
                Ok(len) => self.inbox.extend_from_slice(&bytes[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.state = LinkState::Lost,
            }
        }
    }

    /// The next whole frame.
    fn take(&mut self) -> Option<(u32, Vec<u64>)> {
        let head = self.inbox.get(..HEAD_BYTES)?;
        let [kind, count] = [0, 4].map(|start| {
            u32::from_le_bytes([head[start], head[start + 1], head[start + 2], head[start + 3]])
        });
        let end = HEAD_BYTES + 8 * count as usize;
        let numbers = self.inbox.get(HEAD_BYTES..end)?.as_chunks::<8>().0.iter();
        let numbers = numbers.map(|bytes| u64::from_le_bytes(*bytes)).collect();
        self.inbox.drain(..end);
        Some((kind, numbers))
    }
}
