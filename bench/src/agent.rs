//! A client of an agent's own interface, blocking: one connection on one single-threaded runtime.

use crate::cell::Source;
use crate::clock;
use crate::payload::parse_stamp;
use anyhow::{Context, bail};
use fsb_proto::agent::agent_service_client::AgentServiceClient;
use fsb_proto::{agent as wire, fastpath};
use fsb_rpc::{Address, Channel};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The longest that anything may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at something that is awaited.
const PAUSE: Duration = Duration::from_millis(2);

/// A runtime that runs on the calling thread.
pub fn runtime() -> std::io::Result<Rc<Runtime>> {
    Ok(Rc::new(tokio::runtime::Builder::new_current_thread().enable_all().build()?))
}

/// A connection over a unix socket, opened before it is returned.
pub async fn channel(socket: &Path) -> anyhow::Result<Channel> {
    let channel = Channel::new(Address::Unix(socket.to_owned()), PATIENCE, None);
    channel.connect().await.with_context(|| format!("connect to {}", socket.display()))?;
    Ok(channel)
}

/// An agent.
pub struct Agent {
    runtime: Rc<Runtime>,
    client: AgentServiceClient<Channel>,
    socket: PathBuf,
}

impl Agent {
    /// Connects, waiting until it serves.
    pub fn connect(runtime: &Rc<Runtime>, socket: &Path) -> anyhow::Result<Self> {
        let end = clock::now_ns() + PATIENCE.as_nanos() as u64;
        loop {
            match Self::try_connect(runtime, socket) {
                Ok(agent) => return Ok(agent),
                Err(error) if clock::now_ns() > end => return Err(error),
                Err(_) => std::thread::sleep(PAUSE),
            }
            crate::interrupt::check()?;
        }
    }

    /// Connects and asks for its status, once.
    pub fn try_connect(runtime: &Rc<Runtime>, socket: &Path) -> anyhow::Result<Self> {
        let channel = runtime.block_on(channel(socket))?;
        let mut agent =
            Self { runtime: runtime.clone(), client: AgentServiceClient::new(channel), socket: socket.to_owned() };
        agent.status()?;
        Ok(agent)
    }

    /// Where it is reached.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its instances, images and stock.
    pub fn status(&mut self) -> anyhow::Result<wire::Snapshot> {
        Ok(self.within(|client| Box::pin(client.status(wire::StatusRequest {})))?)
    }

    /// Gives it the image in `archive`.
    pub fn import(&mut self, archive: &Path, reference: &str) -> anyhow::Result<()> {
        let request = wire::ImportImageRequest {
            path: archive.display().to_string(),
            reference: reference.to_owned(),
            cmd: vec![crate::payload::Payload::Tiny.path().to_owned()],
            ..Default::default()
        };
        self.within(|client| Box::pin(client.import_image(request))).context("import the image")?;
        Ok(())
    }

    /// Asks it to keep paused containers of an image.
    pub fn warm(&mut self, reference: &str) -> anyhow::Result<()> {
        let request = wire::SetWarmImagesRequest { images: vec![reference.to_owned()] };
        self.within(|client| Box::pin(client.set_warm_images(request)))?;
        Ok(())
    }

    /// Starts an instance.
    pub fn create(&mut self, request: wire::CreateRequest) -> anyhow::Result<wire::CreateResponse> {
        Ok(self.within(|client| Box::pin(client.create(request)))?)
    }

    /// The stamp in an instance's log, waiting until it is there.
    pub fn stamp(&mut self, instance: &str) -> anyhow::Result<u64> {
        let request = wire::LogsRequest { instance_id: instance.to_owned(), follow: true, ..Default::default() };
        let mut client = self.client.clone();
        let first = async move {
            let mut chunks = client.logs(request).await?.into_inner();
            first_stamp(&mut chunks).await
        };
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, first).await })?
    }

    /// Removes an instance with its log, and waits until nothing of it is left.
    pub fn remove(&mut self, instance: &str) -> anyhow::Result<()> {
        let end = clock::now_ns() + PATIENCE.as_nanos() as u64;
        loop {
            let request = wire::DeleteRequest {
                instance_id: instance.to_owned(),
                grace_period_seconds: Some(0),
                remove_logs: true,
                ..Default::default()
            };
            match self.within(|client| Box::pin(client.delete(request))) {
                Ok(response) if response.gone => return Ok(()),
                Ok(_) => {}
                Err(status) if status.code() == tonic::Code::NotFound => return Ok(()),
                Err(status) => return Err(status.into()),
            }
            if clock::now_ns() > end {
                bail!("{instance} is not gone after {PATIENCE:?}");
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until its stock does not grow any more.
    pub fn settled(&mut self) -> anyhow::Result<()> {
        settled(&mut || self.paused()).map(|_| ())
    }

    /// Where the containers of all starts so far came from, by its own count (an instance that is over may be forgotten
    /// by the time that it is asked for).
    pub fn starts(&self) -> anyhow::Result<BTreeMap<Source, u64>> {
        let mut stream = UnixStream::connect(&self.socket).context("connect to the agent")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text).context("read the agent's metrics")?;
        Ok(parse_starts(&text))
    }

    /// How many containers are paused.
    pub fn paused(&mut self) -> anyhow::Result<i32> {
        Ok(self.status()?.stock.iter().map(|stock| stock.paused).sum())
    }

    fn within<T>(
        &mut self,
        call: impl FnOnce(
            &mut AgentServiceClient<Channel>,
        )
            -> std::pin::Pin<Box<dyn Future<Output = Result<tonic::Response<T>, tonic::Status>> + '_>>,
    ) -> Result<T, tonic::Status> {
        let runtime = self.runtime.clone();
        let answer = async { tokio::time::timeout(PATIENCE, call(&mut self.client)).await };
        match runtime.block_on(answer) {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(tonic::Status::deadline_exceeded(format!("no answer within {PATIENCE:?}"))),
        }
    }
}

fn parse_starts(metrics: &str) -> BTreeMap<Source, u64> {
    let count = |source: Source| -> Option<(Source, u64)> {
        let name = format!("fsb_agent_starts_total{{source=\"{}\",result=\"started\"}} ", source.name());
        let value = metrics.lines().find_map(|line| line.strip_prefix(&name))?;
        Some((source, value.trim().parse().ok()?))
    };
    [Source::Stock, Source::Cast, Source::Libcontainer].into_iter().filter_map(count).collect()
}

/// What `after` counts more than `before`.
pub fn since(before: &BTreeMap<Source, u64>, after: BTreeMap<Source, u64>) -> BTreeMap<Source, u64> {
    let more = |(source, n): (Source, u64)| (source, n - before.get(&source).copied().unwrap_or(0));
    after.into_iter().map(more).filter(|(_, n)| *n > 0).collect()
}

/// The stamp in the first line of a log.
pub async fn first_stamp(chunks: &mut tonic::Streaming<fastpath::LogChunk>) -> anyhow::Result<u64> {
    while let Some(chunk) = chunks.message().await? {
        if let Some(line) = chunk.lines.first() {
            return parse_stamp(&line.text)
                .with_context(|| format!("not a stamp: {:?}", String::from_utf8_lossy(&line.text)));
        }
    }
    bail!("the log ended without a stamp")
}

/// Waits until a stock is as full as it gets: `full` containers, or as many as stay for a while at the first time.
#[derive(Debug, Default)]
pub struct Stock {
    full: i32,
}

impl Stock {
    /// Waits; gives up after a second, since a sample without stock is a result too (it is counted as such).
    pub fn wait(&mut self, paused: impl FnMut() -> anyhow::Result<i32>) -> anyhow::Result<()> {
        self.wait_within(Duration::from_secs(1), paused).map(|_| ())
    }

    /// Waits, at most so long after it was first seen full, and returns how many there are.
    pub fn wait_within(
        &mut self,
        patience: Duration,
        mut paused: impl FnMut() -> anyhow::Result<i32>,
    ) -> anyhow::Result<i32> {
        if self.full == 0 {
            self.full = settled(&mut paused)?;
        }
        let end = clock::now_ns() + patience.as_nanos() as u64;
        loop {
            let ready = paused()?;
            if ready >= self.full || clock::now_ns() > end {
                return Ok(ready);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// The count at which a stock has stayed for half a second, or that it has after ten.
fn settled(paused: &mut impl FnMut() -> anyhow::Result<i32>) -> anyhow::Result<i32> {
    let (mut count, mut since) = (paused()?, clock::now_ns());
    let begin = since;
    while clock::now_ns() - since < 500_000_000 && clock::now_ns() - begin < 10_000_000_000 {
        std::thread::sleep(PAUSE);
        let now = paused()?;
        if now != count || now == 0 {
            (count, since) = (now, clock::now_ns());
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_by_the_difference_of_the_agents_counts() {
        let text = |stock: u64| {
            format!(
                "fsb_agent_starts_total{{source=\"stock\",result=\"started\"}} {stock}\n\
                 fsb_agent_starts_total{{source=\"cast\",result=\"failed\"}} 9\n\
                 fsb_agent_starts_total{{source=\"cast\",result=\"started\"}} 2\n"
            )
        };
        let (before, after) = (parse_starts(&text(1)), parse_starts(&text(4)));
        assert_eq!(since(&before, after), BTreeMap::from([(Source::Stock, 3)]));
    }
}
