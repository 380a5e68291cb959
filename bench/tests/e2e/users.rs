//! Whom a program runs as.

use crate::node::{Node, block_on};
use fsb_proto::fastpath::CreateRequest;
use tonic::Code;

const WHO: [&str; 3] = ["sh", "-c", "echo $(id -u) $(id -g) $(id -G) $HOME"];

/// What `id` says in images whose configuration names these users, and with these of the request.
const USERS: [(&str, &str, &str); 9] = [
    ("user", "", "1000 1000 1000 2000 /home/user"),
    ("user:extra", "", "1000 2000 2000 /home/user"),
    ("1000", "", "1000 1000 1000 2000 /home/user"),
    ("500", "", "500 0 0 /"),
    ("7:8", "", "7 8 8 /"),
    (":8", "", "0 8 8 /root"),
    ("", "", "0 0 0 /root"),
    // The request's replaces it as a whole.
    ("7:8", "user", "1000 1000 1000 2000 /home/user"),
    ("user", "0", "0 0 0 /root"),
];

fn users(environment: &[(&str, &str)]) {
    let node = Node::up_with(&[], environment);
    let tar = node.root().join("busybox.tar").display().to_string();
    for (number, (of_image, asked, who)) in USERS.into_iter().enumerate() {
        let image = format!("image{number}");
        node.ctl_ok(&["image", "import", &tar, "--name", &image, "--user", of_image]);
        let mut command = vec!["run", "--rm", "--image", &image];
        if !asked.is_empty() {
            command.extend(["--user", asked]);
        }
        command.push("--");
        command.extend(WHO);
        // The first is made for it, others may come from the stock.
        for _ in 0..3 {
            assert_eq!(node.ctl_ok(&command), format!("{who}\n"), "{of_image:?}, asked for {asked:?}");
        }
    }
    for (of_image, why) in [
        ("nobody-here", ["nobody-here", "/etc/passwd"]),
        ("user:nobodies", ["nobodies", "/etc/group"]),
        ("4294967294", ["4294967294", "2147483647"]),
    ] {
        node.ctl_ok(&["image", "import", &tar, "--name", "wrong", "--user", of_image]);
        let request = || CreateRequest {
            image: "wrong".into(),
            name: "wrong".into(),
            command: WHO.map(str::to_owned).to_vec(),
            ..Default::default()
        };
        let status = block_on(async { node.client().await.create_sandbox(request()).await.unwrap_err() });
        assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
        assert!(why.iter().all(|word| status.message().contains(word)), "{status:?}");
        let asked = node.ctl_ok(&["run", "--rm", "--image", "wrong", "--user", "user", "--", "id", "-u"]);
        assert_eq!(asked, "1000\n");
    }
    node.finish();
}

#[test]
fn a_program_runs_as_the_user_of_its_image_unless_another_is_asked_for() {
    users(&[]);
}

#[test]
fn a_container_made_by_libcontainer_runs_as_the_user_of_its_image_too() {
    users(&[("FSB_MAKE", "libcontainer")]);
}
