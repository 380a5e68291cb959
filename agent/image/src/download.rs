//! Layers on their way here. What a download that broke off has brought is kept for a while, and the next one goes on
//! from there, whoever asks for it.

use crate::digest::Digest;
use crate::error::{At, Error, Result};
use crate::lock::try_exclusive;
use crate::manifest::Descriptor;
use crate::registry::{ATTEMPTS, PAUSE, Registry, chain, described, explain, failed, is_lasting};
use crate::store::{Store, blocking};
use crate::stream::{Hashing, drain};
use futures_util::StreamExt;
use oci_client::client::BlobResponse;
use oci_client::errors::OciDistributionError;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::PathBuf;
use tokio::io::AsyncWriteExt;

/// Why a download broke off.
enum Broken {
    /// The registry, and whether asking again is of no use.
    Registry(String, bool),
    Store(std::io::Error),
}

impl Registry {
    /// Downloads a layer into a file. Its digest is checked as it is unpacked, and here where parts of it were there.
    pub(crate) async fn blob(&self, store: &Store, layer: &Descriptor, report: &impl Fn(&str, u64)) -> Result<File> {
        let digest = Digest::parse(&layer.digest)?;
        let part = store.part(&digest);
        let mut file = {
            let (store, part) = (store.clone(), part.clone());
            // Somebody else downloads it for another image: then a file without a name.
            blocking(move || match try_exclusive(&part)? {
                Some(file) => Ok(file),
                None => store.unnamed(),
            })
            .await?
        };
        let mut done = file.metadata().at("look at", &part)?.len();
        report(&layer.digest, done);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let resumed = done > 0;
            let brought = self.download(layer, &mut file, &mut done, report).await;
            let broken = match brought {
                Ok(()) if !resumed || is_whole(&file, &digest).await? => {
                    file.rewind().at("read", &part)?;
                    return Ok(file);
                }
                Ok(()) => {
                    forget(&file, layer, &mut done, report).at("write into", &part)?;
                    Broken::Registry("what was there of it is damaged".into(), false)
                }
                Err(broken) => broken,
            };
            match broken {
                Broken::Store(error) => return Err(Error::io("write into", &part, error)),
                Broken::Registry(why, lasting) if lasting || attempt == ATTEMPTS => {
                    drop(file);
                    if lasting || done == 0 {
                        store.drop_part(&digest);
                    }
                    return Err(failed(&self.reference, format!("layer {}: {why}", layer.digest)));
                }
                Broken::Registry(why, _) => {
                    tracing::debug!(image = %self.reference, layer = layer.digest, why, "a download is tried again");
                    tokio::time::sleep(PAUSE * 2u32.pow(attempt - 1)).await;
                }
            }
        }
    }

    /// Adds to `file`, which has `done` bytes of the layer, those that are missing.
    async fn download(
        &self,
        layer: &Descriptor,
        file: &mut File,
        done: &mut u64,
        report: &impl Fn(&str, u64),
    ) -> Result<(), Broken> {
        let broken = |error: OciDistributionError| Broken::Registry(explain(&error), is_lasting(&error));
        if *done > layer.size {
            forget(file, layer, done, report).map_err(Broken::Store)?;
        }
        if *done > 0 && *done == layer.size {
            return Ok(());
        }
        let (target, described) = (self.target(None), described(layer));
        let blob = if *done == 0 {
            self.client.pull_blob_stream(&target, &described).await.map_err(broken)?
        } else {
            match self.client.pull_blob_stream_partial(&target, &described, *done, None).await.map_err(broken)? {
                BlobResponse::Partial(rest) => rest,
                // A registry that sends only whole ones.
                BlobResponse::Full(blob) => {
                    forget(file, layer, done, report).map_err(Broken::Store)?;
                    blob
                }
            }
        };
        file.seek(SeekFrom::Start(*done)).map_err(Broken::Store)?;
        let mut writer = tokio::fs::File::from_std(file.try_clone().map_err(Broken::Store)?);
        let mut blob = blob.stream;
        let ended = loop {
            let Some(chunk) = blob.next().await else { break Ok(()) };
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(error) => break Err(Broken::Registry(chain(&error), false)),
            };
            writer.write_all(&chunk).await.map_err(Broken::Store)?;
            *done += chunk.len() as u64;
            report(&layer.digest, chunk.len() as u64);
            if *done > layer.size {
                break Err(Broken::Registry(format!("the registry sends more than its {} bytes", layer.size), true));
            }
        };
        writer.flush().await.map_err(Broken::Store)?;
        match ended {
            // All bytes came, and the client says that they are not those of the layer.
            Err(broken) if *done >= layer.size => {
                forget(file, layer, done, report).map_err(Broken::Store)?;
                Err(broken)
            }
            Ok(()) if *done < layer.size => {
                Err(Broken::Registry(format!("the registry sent {done} of its {} bytes", layer.size), false))
            }
            ended => ended,
        }
    }
}

/// Starts over: what the file has is of no use.
fn forget(file: &File, layer: &Descriptor, done: &mut u64, report: &impl Fn(&str, u64)) -> std::io::Result<()> {
    report(&layer.digest, done.wrapping_neg());
    *done = 0;
    file.set_len(0)
}

async fn is_whole(file: &File, digest: &Digest) -> Result<bool> {
    let mut file = file.try_clone().at("read a part of", digest.as_str())?;
    let digest = digest.clone();
    blocking(move || {
        file.rewind().at("read a part of", digest.as_str())?;
        let (mut reader, seen) = Hashing::new(file);
        drain(&mut reader).at("read a part of", digest.as_str())?;
        Ok(seen.take().0 == digest)
    })
    .await
}

impl Store {
    /// Where a layer's archive lies while it is brought here.
    fn part(&self, digest: &Digest) -> PathBuf {
        self.parts().join(digest.hex())
    }

    fn unnamed(&self) -> Result<File> {
        let tmp = self.directory().join("tmp");
        tempfile::tempfile_in(&tmp).at("make a file in", &tmp)
    }

    /// Removes a layer's archive, unless somebody else is about to bring it here.
    pub(crate) fn drop_part(&self, digest: &Digest) {
        let path = self.part(digest);
        if path.exists()
            && let Ok(Some(_alone)) = try_exclusive(&path)
            && let Err(error) = std::fs::remove_file(&path)
        {
            // The collector removes it later.
            tracing::debug!(path = %path.display(), %error, "a part of a layer could not be removed");
        }
    }
}
