//! `run` with neither image nor file: the user describes the sandbox in an editor.

use crate::config::Settings;
use crate::error::{Context, Failure, Result};
use crate::output;
use crate::spec_file;
use crate::template::template;
use fsb_files::Access;
use fsb_proto::fastpath::CreateRequest;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

const FALLBACK: &str = "vi";

/// Opens the editor on the last edit of `name`, or on a template, and reads what the user leaves.
pub(crate) fn edit(settings: &Settings, name: Option<&str>) -> Result<CreateRequest> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let remembered = match (name, &home) {
        (Some(name), Some(home)) => {
            fsb_proto::domain::validate_dns_name("name", name).map_err(|why| Failure::usage(why.to_string()))?;
            Some(home.join(".fsb-ctl/cache").join(format!("{name}.yaml")))
        }
        _ => None,
    };
    let before = match &remembered {
        Some(path) if path.exists() => {
            std::fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?
        }
        _ => template(name),
    };
    let after = open(settings.editor.as_deref().unwrap_or(FALLBACK), &before)?;
    if let Some(path) = remembered.as_deref().filter(|_| after != template(name))
        && let Err(failure) = remember(path, &after)
    {
        // Somebody else's home, with sudo: no reason not to start what was described.
        output::warning(&failure.to_string());
    }
    let again = name.map_or_else(
        || "fsb-ctl run --image IMAGE -- COMMAND starts one without an editor".to_owned(),
        |name| format!("fsb-ctl run {name} opens your last edit again"),
    );
    let request = spec_file::parse(&after, SystemTime::now())
        .map_err(|why| Failure::new(format!("what you wrote is not understood: {why}")).hint(again.clone()))?;
    if request.image.is_empty() {
        return Err(Failure::new("nothing was started: the image is empty").hint(again));
    }
    Ok(request)
}

/// Lets the user edit `text`. The editor is a shell command, as `$EDITOR` is for git.
fn open(editor: &str, text: &str) -> Result<String> {
    let mut file = tempfile::Builder::new()
        .prefix("fsb-")
        .suffix(".yaml")
        .tempfile()
        .context(|| "cannot make a file to edit".into())?;
    file.write_all(text.as_bytes()).context(|| format!("cannot write {}", file.path().display()))?;
    let status = Command::new("sh")
        .args(["-c", &format!("{editor} \"$1\""), "editor"])
        .arg(file.path())
        .status()
        .context(|| format!("cannot start the editor {editor:?}"))?;
    if !status.success() {
        return Err(Failure::new(format!("nothing was started: the editor {editor:?} ended with {status}"))
            .hint("set $EDITOR or FSB_EDITOR to an editor that is installed"));
    }
    std::fs::read_to_string(file.path()).context(|| format!("cannot read {}", file.path().display()))
}

/// Environments have secrets in them: it is for the user alone.
fn remember(path: &Path, text: &str) -> Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fsb_files::create_dir(parent, Access::Owner).context(|| format!("cannot make {}", parent.display()))?;
    fsb_files::write(path, text, Access::Owner).context(|| format!("cannot write {}", path.display()))
}
