//! What the bench says to its helper processes: one JSON document per line over a unix stream socket.

use crate::burst::{self, Burst};
use crate::cell::Started;
use crate::payload::Payload;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// From the bench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Take one sample, calling when it is due.
    Start { cell: String, payload: Payload, due_ns: Option<u64> },
    /// Take many samples at once.
    Burst { cell: String, ask: burst::Ask },
    /// Have so many paused containers.
    Hold { count: usize },
    /// Say where the time of the starts so far went.
    Stages,
}

/// To the bench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// First message of a helper: it is set up.
    Ready,
    Started(Started),
    Burst(Burst),
    /// That many are paused now.
    Holding {
        count: usize,
    },
    /// Mean microseconds of each step of a start.
    Stages(BTreeMap<String, f64>),
    Failed {
        error: String,
    },
}

/// One side of the conversation.
#[derive(Debug)]
pub struct Line {
    reader: BufReader<UnixStream>,
    writer: UnixStream,
}

impl Line {
    /// Over a connected socket.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self { writer: stream.try_clone()?, reader: BufReader::new(stream) })
    }

    /// Sends one message.
    pub fn send<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        self.writer.write_all(&line)
    }

    /// Receives one message; `None` at end-of-file.
    pub fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut line = String::new();
        match self.reader.read_line(&mut line)? {
            0 => Ok(None),
            _ => Ok(Some(serde_json::from_str(&line)?)),
        }
    }

    /// Serves the bench until it hangs up.
    pub fn serve(mut self, mut answer: impl FnMut(Ask) -> anyhow::Result<Answer>) -> io::Result<()> {
        self.send(&Answer::Ready)?;
        while let Some(ask) = self.receive()? {
            let reply = answer(ask).unwrap_or_else(|error| Answer::Failed { error: format!("{error:#}") });
            self.send(&reply)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_answers_until_the_bench_hangs_up() {
        let (a, b) = UnixStream::pair().unwrap();
        let helper = std::thread::spawn(move || {
            Line::new(b).unwrap().serve(|ask| match ask {
                Ask::Hold { count } => Ok(Answer::Holding { count }),
                Ask::Start { cell, .. } => anyhow::bail!("no cell {cell}"),
                Ask::Stages => Ok(Answer::Stages(BTreeMap::new())),
                Ask::Burst { .. } => Ok(Answer::Burst(Burst::at(1))),
            })
        });
        let mut line = Line::new(a).unwrap();
        assert_eq!(line.receive::<Answer>().unwrap(), Some(Answer::Ready));
        line.send(&Ask::Hold { count: 3 }).unwrap();
        assert_eq!(line.receive().unwrap(), Some(Answer::Holding { count: 3 }));
        line.send(&Ask::Start { cell: "x".into(), payload: Payload::Tiny, due_ns: None }).unwrap();
        assert_eq!(line.receive().unwrap(), Some(Answer::Failed { error: "no cell x".into() }));
        drop(line);
        helper.join().unwrap().unwrap();
    }
}
