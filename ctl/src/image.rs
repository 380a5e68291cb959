//! `image import|pull|ls|rm`: the images of the local node, through one of its agents.

use crate::client::{self, CALL};
use crate::config::{Endpoint, Settings};
use crate::error::{Context, Failure, Result};
use crate::local::dirs::Dirs;
use crate::output::{self, FormatArg};
use crate::units;
use clap::Subcommand;
use fsb_proto::agent::agent_service_client::AgentServiceClient;
use fsb_proto::agent::{
    ImageInfo, ImportImageRequest, ListImagesRequest, PullImageRequest, PullProgress, RemoveImageRequest,
};
use fsb_proto::fastpath::PullPolicy;
use fsb_rpc::Channel;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// An image of many gigabytes on a slow disk.
const IMPORT: Duration = Duration::from_secs(1800);

/// The images of the local node. All of its agents share them.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Read an image from a file: OCI layout, `docker save` archive, or the tar of a root file system
    Import(Import),
    /// Fetch an image from a registry
    Pull {
        /// The image's reference
        reference: String,
        /// Ask the registry even if the image is here
        #[arg(long)]
        always: bool,
        #[command(flatten)]
        format: FormatArg,
    },
    /// Show the images
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        format: FormatArg,
    },
    /// Remove images
    Rm {
        /// References or digests
        #[arg(required = true)]
        references: Vec<String>,
    },
}

#[derive(clap::Args)]
struct Import {
    /// A file or a folder; `-` reads stdin
    path: PathBuf,
    /// The name to give it [default: what the archive says]
    #[arg(long, value_name = "REFERENCE")]
    name: Option<String>,
    /// Entrypoint of a root file system, one word each
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    entrypoint: Vec<String>,
    /// Default arguments of a root file system, one word each
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    cmd: Vec<String>,
    /// Environment of a root file system
    #[arg(short, long = "env", value_name = "K=V")]
    env: Vec<String>,
    /// Working directory of a root file system
    #[arg(short, long, value_name = "DIR", default_value = "", hide_default_value = true)]
    workdir: String,
    /// User of a root file system
    #[arg(short, long, default_value = "", hide_default_value = true)]
    user: String,
    #[command(flatten)]
    format: FormatArg,
}

pub(crate) async fn run(args: Args, settings: &Settings) -> Result<u8> {
    let (mut agent, settings) = connect(settings).await?;
    let refused = |status| client::image_failure(&settings, &status);
    match args.what {
        What::Import(import) => {
            let (path, _spooled) = readable(&import.path, &Dirs::of(settings.root.as_deref()).state)?;
            let request = ImportImageRequest {
                path,
                reference: import.name.unwrap_or_default(),
                entrypoint: import.entrypoint,
                cmd: import.cmd,
                env: import.env,
                working_dir: import.workdir,
                user: import.user,
            };
            let spinner = output::spinner("importing");
            let answer = agent.import_image(client::request(request, IMPORT)).await;
            spinner.finish_and_clear();
            show(import.format, vec![answer.map_err(refused)?.into_inner()])?;
        }
        What::Pull { reference, always, format } => {
            let policy = if always { PullPolicy::Always } else { PullPolicy::Missing } as i32;
            let mut stream =
                agent.pull_image(PullImageRequest { reference, policy }).await.map_err(refused)?.into_inner();
            let mut progress = Progress::new();
            let mut image = None;
            while let Some(message) = stream.message().await.map_err(refused)? {
                progress.show(&message);
                image = message.image.or(image);
            }
            progress.bar.finish_and_clear();
            let image = image.ok_or_else(|| Failure::new("the agent stopped in the middle of the pull"))?;
            show(format, vec![image])?;
        }
        What::Ls { format } => {
            let answer = agent.list_images(client::request(ListImagesRequest {}, CALL)).await;
            show(format, answer.map_err(refused)?.into_inner().images)?;
        }
        What::Rm { references } => {
            let mut missing = Vec::new();
            for reference in references {
                let request = RemoveImageRequest { reference: reference.clone() };
                let answer = agent.remove_image(client::request(request, CALL)).await.map_err(refused)?;
                if answer.into_inner().existed {
                    output::line(&reference)?;
                } else {
                    missing.push(reference);
                }
            }
            if !missing.is_empty() {
                return Err(Failure::new(format!("there is no image {}", missing.join(", "))).hint("fsb-ctl image ls"));
            }
        }
    }
    Ok(0)
}

/// Connects to the first agent of the local node that answers.
async fn connect(settings: &Settings) -> Result<(AgentServiceClient<Channel>, Settings)> {
    let dirs = Dirs::of(settings.root.as_deref());
    let mut sockets: Vec<PathBuf> = std::fs::read_dir(&dirs.run)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    sockets.retain(|path| path.extension().is_some_and(|e| e == "sock") && !path.ends_with("controller.sock"));
    sockets.sort();
    let mut last = None;
    for socket in sockets {
        let endpoint = Endpoint::Unix(socket);
        match client::channel(&endpoint).await {
            Ok(channel) => {
                return Ok((AgentServiceClient::new(channel), Settings { endpoint, ..settings.clone() }));
            }
            Err(why) => last = Some(format!("cannot reach the agent at {endpoint}: {why}")),
        }
    }
    let what = last.unwrap_or_else(|| format!("there is no agent in {}", dirs.run.display()));
    Err(Failure::new(what).hint("images are the local node's: `fsb-ctl local up` starts it, --root names another"))
}

/// The absolute path of what is to be imported; stdin is written to a file that lives as long as the second value. On
/// the node's disk where we may: the usual place for such files is often memory.
fn readable(path: &Path, state: &Path) -> Result<(String, Option<tempfile::NamedTempFile>)> {
    let name = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| Failure::usage(format!("{}: not UTF-8", path.display())))
    };
    if path == Path::new("-") {
        if std::io::stdin().is_terminal() {
            return Err(Failure::usage("stdin is a terminal").hint("fsb-ctl image import - < image.tar"));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".import-").suffix(".tar");
        let file = builder.tempfile_in(state).or_else(|_| builder.tempfile());
        let mut file = file.context(|| "cannot make a file for stdin".into())?;
        std::io::copy(&mut std::io::stdin().lock(), &mut file).context(|| "cannot read stdin".into())?;
        return Ok((name(file.path())?, Some(file)));
    }
    let absolute = path.canonicalize().map_err(|error| {
        Failure::new(format!("cannot read {}: {error}", path.display()))
            .hint("`fsb-ctl image pull REFERENCE` takes an image from a registry")
    })?;
    Ok((name(&absolute)?, None))
}

/// One bar over all layers of a pull.
struct Progress {
    bar: ProgressBar,
    layers: BTreeMap<String, (i64, i64)>,
}

impl Progress {
    fn new() -> Self {
        let bar = output::spinner("pulling");
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            bar.set_style(style);
        }
        Self { bar, layers: BTreeMap::new() }
    }

    fn show(&mut self, message: &PullProgress) {
        self.layers.insert(message.layer.clone(), (message.done_bytes, message.total_bytes));
        let sum = self.layers.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
        let human = |bytes: i64| units::human_bytes(bytes.max(0) as u64);
        self.bar.set_message(format!("pulling {} of {}", human(sum.0), human(sum.1)));
    }
}

#[derive(Serialize)]
struct Listing {
    items: Vec<View>,
}

#[derive(Serialize)]
struct View {
    digest: String,
    references: Vec<String>,
    size_bytes: i64,
    created_ms: i64,
}

fn show(format: FormatArg, images: Vec<ImageInfo>) -> Result<()> {
    let view = |image: ImageInfo| View {
        digest: image.digest,
        references: image.references,
        size_bytes: image.size_bytes,
        created_ms: image.created_ms,
    };
    let listing = Listing { items: images.into_iter().map(view).collect() };
    output::show(format.output, &listing, |wide| {
        let mut table = output::table(["REFERENCE", "DIGEST", "SIZE", "AGE"]);
        for image in &listing.items {
            let then = UNIX_EPOCH + Duration::from_millis(image.created_ms.max(0) as u64);
            let short = image.digest.strip_prefix("sha256:").unwrap_or(&image.digest);
            let digest = if wide { image.digest.clone() } else { short.chars().take(12).collect() };
            table.add_row([
                output::or_dash(&image.references.join(",")),
                digest,
                units::human_bytes(image.size_bytes.max(0) as u64),
                units::age(SystemTime::now().duration_since(then).unwrap_or_default()),
            ]);
        }
        output::tight(&mut table);
        table
    })
}
