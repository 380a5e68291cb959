//! One pipe of one sandbox → its log file.

use super::engine::Engine;
use super::frame::{Framer, Stamp, Stream};
use super::sink::Sink;
use super::{Handle, Shared};
use fsb_host::process::pipe_bytes;
use std::os::fd::AsRawFd;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tracing::warn;

/// The buffer in which a quiet pipe waits; there are two per sandbox.
const SMALL: usize = 512;
/// The most that is read at a time.
pub(crate) const LARGE: usize = 32 << 10;
/// Records are written when there are so many bytes of them.
const ENOUGH: usize = 48 << 10;
/// Ticks after which a pipe with nothing in it is waited for again.
const EMPTY_TICKS: u32 = 4;
/// A line that stays open for so long is written as a part, so that a prompt is seen.
const OPEN_LINE: Duration = Duration::from_millis(100);

/// Reads until end-of-file, or until the handle is cut and what lay in the pipe is read.
pub(crate) async fn run<E: Engine>(
    pipe: E::Pipe,
    stream: Stream,
    sink: Rc<Sink<E>>,
    handle: Rc<Handle>,
    shared: Rc<Shared>,
) {
    let mut pump = Pump { framer: Framer::new(stream), sink, shared };
    let mut small = Vec::with_capacity(SMALL);
    let mut before: Option<Instant> = None;
    // Ticks to wait, instead of for the pipe, while there is nothing in it.
    let mut ticks = 0;
    // What may still be read once the handle is cut.
    let mut left: Option<usize> = None;
    loop {
        let there = pipe_bytes(pipe.as_raw_fd()).unwrap_or(0);
        if handle.is_cut() {
            let left = *left.get_or_insert(there);
            if left == 0 {
                break;
            }
        }
        if there == 0 && ticks > 0 && !handle.is_finishing() {
            ticks -= 1;
            handle.tick(&pump.shared.pace).await;
            continue;
        }
        let large = there > SMALL;
        let buffer = if large { pump.shared.take(LARGE) } else { std::mem::take(&mut small) };
        let (result, buffer) = pump.read(&pipe, buffer, there == 0).await;
        let bytes = match result {
            Ok(0) => break,
            Ok(bytes) => bytes,
            Err(error) => {
                warn!(?stream, %error, "a pipe cannot be read");
                break;
            }
        };
        if handle.is_cut() && left.is_none() && there == 0 && buffer == super::WAKE {
            break;
        }
        pump.write(&buffer).await;
        if large {
            pump.shared.give(buffer);
        } else {
            small = buffer;
        }
        if let Some(left) = &mut left {
            *left = left.saturating_sub(bytes);
        }
        let now = Instant::now();
        ticks = 0;
        if pump.shared.pace.should_wait(bytes, before, now) && !handle.is_finishing() {
            ticks = EMPTY_TICKS;
            handle.tick(&pump.shared.pace).await;
        }
        before = Some(now);
    }
    pump.flush().await;
}

struct Pump<E: Engine> {
    framer: Framer,
    sink: Rc<Sink<E>>,
    shared: Rc<Shared>,
}

impl<E: Engine> Pump<E> {
    async fn read(&mut self, pipe: &E::Pipe, buffer: Vec<u8>, waits: bool) -> (std::io::Result<usize>, Vec<u8>) {
        let mut read = pin!(E::read(pipe, buffer));
        if waits && self.framer.holds_text() {
            tokio::select! {
                biased;
                done = &mut read => return done,
                () = sleep(OPEN_LINE) => self.flush().await,
            }
        }
        read.await
    }

    async fn write(&mut self, mut input: &[u8]) {
        let stamp = Stamp::now();
        while !input.is_empty() {
            let mut batch = self.shared.take(0);
            let used = self.framer.frame(input, &stamp, ENOUGH.min(self.shared.file_bytes()), &mut batch);
            input = &input[used..];
            if !batch.is_empty() {
                batch = self.sink.write(batch).await;
            }
            self.shared.give(batch);
        }
    }

    async fn flush(&mut self) {
        let mut part = Vec::new();
        self.framer.flush(&Stamp::now(), &mut part);
        if !part.is_empty() {
            self.sink.write(part).await;
        }
    }
}
