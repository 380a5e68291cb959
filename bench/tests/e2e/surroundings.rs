//! Machines and places that are not as a node needs them.

use crate::node::Node;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

#[test]
fn what_cannot_work_is_refused_before_anything_is_made() {
    let node = Node::down();
    let [lower, upper, work, state] = ["lower", "upper", "work", "lib"].map(|name| node.root().join(name));
    for dir in [&lower, &upper, &work, &state] {
        std::fs::create_dir(dir).unwrap();
    }
    // As in a container: an overlay is no place for the writable layers of others.
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    mount(Some("overlay"), &state, Some("overlay"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let said = ["up", "serve"].map(|how| node.ctl(&["local", how]));
    let made = ["run", "log"].map(|name| node.root().join(name).exists());
    let written = std::fs::read_dir(&state).unwrap().count();
    umount2(&state, MntFlags::MNT_DETACH).unwrap();
    for output in said {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.starts_with("error: overlay mount: ") && text.contains("hint: put"), "{text}");
    }
    assert_eq!((made, written), ([false; 2], 0), "nothing was made");
    std::fs::remove_dir(&state).unwrap();
    node.finish();
}
