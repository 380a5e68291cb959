//! A cold container is a container: these tests look at one from outside. They run in a thread of their own mount
//! namespace, since a start must not see shared mounts.

use super::*;
use crate::payload::{Payload, read_stamp};
use crate::workspace::Workspace;

fn in_private_mounts(test: impl FnOnce() + Send + 'static) {
    let _alone = crate::sweep::alone();
    std::thread::spawn(move || {
        crate::launcher::private_mounts().unwrap();
        test();
    })
    .join()
    .unwrap();
}

fn running(workspace: &Workspace) -> (Cold, Container) {
    let image = crate::image::Image::create(&workspace.path().join("image")).unwrap();
    let layers = workspace.path().join("layers");
    let mut cold = Cold::prepare(&format!("{}/test", workspace.name()), &layers, &image.rootfs).unwrap();
    let container = cold.start(&Program::new([Payload::Tiny.path(), "stay"]).unwrap()).unwrap();
    match read_stamp(&container.stdout, Duration::from_secs(10)) {
        Ok(stamp) => assert!(stamp > container.called_ns && stamp < clock::now_ns()),
        Err(error) => panic!("{error}: {:?}", cold.finish(container, false)),
    }
    (cold, container)
}

#[test]
fn a_cold_container_has_namespaces_cgroups_and_a_root_of_its_own() {
    in_private_mounts(|| {
        let workspace = Workspace::create(None).unwrap();
        let (mut cold, container) = running(&workspace);
        let proc = PathBuf::from(format!("/proc/{}", container.pid));
        for (namespace, own) in [("pid", true), ("mnt", true), ("uts", true), ("ipc", true), ("net", false)] {
            let link = |dir: &Path| std::fs::read_link(dir.join("ns").join(namespace)).unwrap();
            assert_eq!(link(&proc) != link(Path::new("/proc/thread-self")), own, "{namespace}");
        }
        let mounts = std::fs::read_to_string(proc.join("mountinfo")).unwrap();
        let points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        for point in ["/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/proc/sys"] {
            assert!(points.contains(&point), "{point} in {points:?}");
        }
        for (path, _) in profile::masked() {
            assert!(points.contains(&path.to_str().unwrap()), "{path:?} in {points:?}");
        }
        assert!(mounts.lines().next().unwrap().contains(" - overlay "), "{mounts}");
        assert!(!mounts.contains("/dev/vda") && !points.contains(&"/sys/fs/cgroup"), "{mounts}");
        let cgroups = std::fs::read_to_string(proc.join("cgroup")).unwrap();
        let own = format!("{}/test/sandboxes/{:032x}", workspace.name(), 1);
        for (controller, _) in cold.tree.dirs() {
            let line = cgroups.lines().find(|line| line.split(':').nth(1).unwrap().split(',').any(|c| c == controller));
            assert!(line.unwrap().ends_with(&own), "{controller} in {cgroups}");
        }
        cold.finish(container, true).unwrap();
        assert_eq!(std::fs::read_dir(workspace.path().join("layers")).unwrap().count(), 0);
        assert!(cold.tree.list().is_empty());
    });
}

#[test]
fn a_cold_container_has_a_sandboxs_privileges_and_no_descriptor_of_ours() {
    in_private_mounts(|| {
        let workspace = Workspace::create(None).unwrap();
        let (mut cold, container) = running(&workspace);
        let proc = PathBuf::from(format!("/proc/{}", container.pid));
        let status = std::fs::read_to_string(proc.join("status")).unwrap();
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("").trim().to_owned();
        assert_eq!(field("Seccomp:"), "2");
        assert_eq!(field("NoNewPrivs:"), "1");
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(u64::from_str_radix(&field(set), 16).unwrap() & !profile::CAPABILITIES, 0, "{set}");
        }
        let mut fds: Vec<_> = std::fs::read_dir(proc.join("fd")).unwrap().map(|fd| fd.unwrap().file_name()).collect();
        fds.sort();
        assert_eq!(fds, ["0", "1", "2"]);
        assert_eq!(std::fs::read_link(proc.join("fd/0")).unwrap(), Path::new("/dev/null"));
        cold.finish(container, true).unwrap();
    });
}

#[test]
fn a_program_that_is_not_there_is_an_error_and_leaves_nothing() {
    in_private_mounts(|| {
        let workspace = Workspace::create(None).unwrap();
        let image = crate::image::Image::create(&workspace.path().join("image")).unwrap();
        let layers = workspace.path().join("layers");
        let mut cold = Cold::prepare(&format!("{}/none", workspace.name()), &layers, &image.rootfs).unwrap();
        let container = cold.start(&Program::new(["/bin/none"]).unwrap()).unwrap();
        assert!(read_stamp(&container.stdout, Duration::from_secs(10)).is_err());
        assert_eq!(cold.finish(container, false).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert!(cold.tree.list().is_empty());
    });
}
