//! Infra plugins: programs of the agent's infra directory that each sandbox sees below `/.fs`, read-only.

use fsb_host::wire::Plugin;
use std::io;
use std::path::{Path, PathBuf};

/// Where plugins are mounted inside a sandbox.
pub const TARGET: &str = "/.fs";

/// What was found in the infra directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// To be mounted, sorted by name.
    pub plugins: Vec<Plugin>,
    /// Entries that are not mounted, with the reason.
    pub rejected: Vec<String>,
}

/// The entries of `dir` whose real paths lie below one of `roots` (symlinks resolved on both sides). A directory that
/// is not there has none.
pub fn collect(dir: &Path, roots: &[PathBuf]) -> io::Result<Found> {
    let mut found = Found::default();
    let roots: Vec<PathBuf> = roots.iter().filter_map(|root| root.canonicalize().ok()).collect();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        match accept(&path, &roots) {
            Ok(source) => {
                found.plugins.push(Plugin { source, target: Path::new(TARGET).join(entry.file_name()) });
            }
            Err(reason) => found.rejected.push(format!("{}: {reason}", path.display())),
        }
    }
    found.plugins.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(found)
}

fn accept(path: &Path, roots: &[PathBuf]) -> Result<PathBuf, String> {
    let real = path.canonicalize().map_err(|error| error.to_string())?;
    if real.to_str().is_none() {
        return Err("its path is not UTF-8".into());
    }
    if !roots.iter().any(|root| real != *root && real.starts_with(root)) {
        return Err(format!("its real path {} is outside ALLOWED_PLUGIN_PATHS", real.display()));
    }
    let kind = real.metadata().map_err(|error| error.to_string())?;
    if kind.is_file() || kind.is_dir() { Ok(real) } else { Err("it is neither a file nor a directory".into()) }
}

/// What goes before every command when the plugin `name` wraps it.
pub fn wrapper(name: &str, plugins: &[Plugin]) -> Option<Vec<String>> {
    let target = Path::new(TARGET).join(name);
    let plugin = plugins.iter().find(|plugin| plugin.target == target)?;
    Some(vec![plugin.target.to_str()?.to_owned(), "--".to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_real_paths_below_the_allowed_ones_are_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let (infra, extra, secret) = (dir.path().join("infra"), dir.path().join("extra"), dir.path().join("infra-x"));
        for path in [&infra, &extra, &secret] {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("tool"), "").unwrap();
        }
        symlink(extra.join("tool"), infra.join("linked")).unwrap();
        symlink(secret.join("tool"), infra.join("stolen")).unwrap();
        symlink("../infra-x", infra.join("upwards")).unwrap();
        symlink("/", infra.join("all")).unwrap();
        symlink(".", infra.join("itself")).unwrap();
        symlink("nowhere", infra.join("dangling")).unwrap();
        let found = collect(&infra, &[infra.clone(), extra.clone()]).unwrap();
        let names: Vec<_> = found.plugins.iter().map(|plugin| plugin.target.to_str().unwrap()).collect();
        assert_eq!(names, ["/.fs/linked", "/.fs/tool"]);
        assert_eq!(found.plugins[0].source, extra.join("tool").canonicalize().unwrap());
        assert_eq!(found.rejected.len(), 5, "{:?}", found.rejected);
    }

    #[test]
    fn a_wrapper_must_be_one_of_the_plugins() {
        let plugins = [Plugin { source: "/opt/x/helper".into(), target: "/.fs/helper".into() }];
        assert_eq!(wrapper("helper", &plugins), Some(vec!["/.fs/helper".into(), "--".into()]));
        assert_eq!(wrapper("other", &plugins), None);
        assert_eq!(wrapper("../helper", &plugins), None);
    }

    #[test]
    fn a_directory_that_is_not_there_has_no_plugins() {
        assert_eq!(collect(Path::new("/does/not/exist"), &[]).unwrap(), Found::default());
    }
}
