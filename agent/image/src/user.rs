//! Users of an image by Docker's rules, from its /etc/passwd and /etc/group.

use crate::error::{Error, Result};
use crate::image::Image;
use crate::merged::Merged;
use fsb_host::wire::User;
use std::collections::HashMap;
use std::sync::Mutex;

/// The most that these files may have, in bytes.
const MAX_FILE: u64 = 4 << 20;
/// Look-ups that are remembered.
const MAX_REMEMBERED: usize = 1024;
/// Ids go up to here in Docker too.
const MAX_ID: u32 = i32::MAX as u32;

/// A user of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) user: User,
    /// Absolute.
    pub(crate) home: String,
}

/// By image and spec.
type Remembered = HashMap<String, HashMap<String, Known>>;

/// Looks users up, and remembers them: an image never changes.
#[derive(Debug, Default)]
pub(crate) struct Users(Mutex<Remembered>);

impl Users {
    pub(crate) fn lookup(&self, image: &Image, spec: &str) -> Result<Known> {
        let remembered = |users: &Remembered| users.get(&image.digest)?.get(spec).cloned();
        if let Some(user) = remembered(&self.0.lock().unwrap_or_else(|e| e.into_inner())) {
            return Ok(user);
        }
        let merged = Merged::open(image)?;
        let file = |path| Ok(merged.read(path, MAX_FILE)?.unwrap_or_default());
        let user = find(spec, &file("/etc/passwd")?, &file("/etc/group")?)?;
        let mut users = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if users.values().map(HashMap::len).sum::<usize>() >= MAX_REMEMBERED {
            users.clear();
        }
        users.entry(image.digest.clone()).or_default().insert(spec.to_owned(), user.clone());
        Ok(user)
    }
}

/// `user[:group]`, each a name or an id; nothing = id 0. A user that passwd knows brings its group, and without
/// `:group` the groups that list it. A bare id that passwd does not know has group 0.
fn find(spec: &str, passwd: &[u8], group: &[u8]) -> Result<Known> {
    let failed = |why: String| Error::User { spec: spec.to_owned(), why };
    let (user, wanted_group) = spec.split_once(':').unwrap_or((spec, ""));
    let (passwd, group) = (String::from_utf8_lossy(passwd), String::from_utf8_lossy(group));
    let uid = match user {
        "" => Some(0),
        user => id(user).map_err(|()| failed(format!("the id {user} is not between 0 and {MAX_ID}")))?,
    };
    // The first line that fits counts.
    let known = passwd.lines().filter_map(Account::parse).find(|account| match uid {
        Some(uid) => account.id == uid,
        None => account.name == user,
    });
    let (uid, mut gid) = match (&known, uid) {
        (Some(account), _) => (account.id, account.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) => {
            return Err(failed(format!("the image has no user {user:?} in /etc/passwd; hint: give a numeric id")));
        }
    };
    let mut groups = Vec::new();
    if !wanted_group.is_empty() {
        let wanted =
            id(wanted_group).map_err(|()| failed(format!("the id {wanted_group} is not between 0 and {MAX_ID}")))?;
        gid = match (wanted, group.lines().filter_map(Group::parse).find(|g| g.name == wanted_group)) {
            (Some(wanted), _) => wanted,
            (None, Some(known)) => known.id,
            (None, None) => {
                let why = format!("the image has no group {wanted_group:?} in /etc/group; hint: give a numeric id");
                return Err(failed(why));
            }
        };
    } else if let Some(account) = &known {
        groups = group.lines().filter_map(Group::parse).filter(|g| g.has(account.name)).map(|g| g.id).collect();
        groups.sort_unstable();
        groups.dedup();
    }
    let home = known
        .map(|account| account.home)
        .filter(|home| home.starts_with('/') && !home.contains('\0'))
        .unwrap_or("/")
        .to_owned();
    Ok(Known { user: User { uid, gid, groups }, home })
}

/// A word of digits as an id; `None` = it is a name.
fn id(word: &str) -> Result<Option<u32>, ()> {
    if word.is_empty() || !word.bytes().all(|b| b.is_ascii_digit()) {
        return Ok(None);
    }
    word.parse().ok().filter(|id| *id <= MAX_ID).map(Some).ok_or(())
}

/// An id that a file gives to a name: it may be larger than what is asked for by number. All ones are none.
fn number(field: &str) -> Option<u32> {
    field.parse().ok().filter(|id| *id != u32::MAX)
}

/// A line of passwd(5).
struct Account<'l> {
    name: &'l str,
    id: u32,
    gid: u32,
    home: &'l str,
}

impl<'l> Account<'l> {
    fn parse(line: &'l str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        fields.next()?;
        let (id, gid) = (number(fields.next()?)?, number(fields.next()?)?);
        Some(Self { name, id, gid, home: fields.nth(1).unwrap_or_default() })
    }
}

/// A line of group(5).
struct Group<'l> {
    name: &'l str,
    id: u32,
    members: &'l str,
}

impl<'l> Group<'l> {
    fn parse(line: &'l str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        fields.next()?;
        let id = number(fields.next()?)?;
        Some(Self { name, id, members: fields.next().unwrap_or_default() })
    }

    fn has(&self, user: &str) -> bool {
        self.members.split(',').any(|member| member.trim() == user)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# c\nbad\nme:x:1000:100::/:\nme:x:7:7::/:\n42:x:9:9::/:\nnfs:x:4294967294:65534::/:\n";
    const GROUP: &[u8] = b"root:x:0:\nwheel:x:10:root,me\nusers:x:100:\naudio:x:29:me\n";

    fn ids(spec: &str) -> (u32, u32, Vec<u32>) {
        let user = find(spec, PASSWD, GROUP).unwrap().user;
        (user.uid, user.gid, user.groups)
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(ids(""), (0, 0, vec![10]));
        assert_eq!(ids("root"), (0, 0, vec![10]));
        assert_eq!(ids("me"), (1000, 100, vec![10, 29]));
        assert_eq!(ids("1000"), (1000, 100, vec![10, 29]));
        assert_eq!(ids("42"), (42, 0, vec![]));
        assert_eq!(ids("me:wheel"), (1000, 10, vec![]));
        assert_eq!(ids("5:6"), (5, 6, vec![]));
        assert_eq!(ids(":wheel"), (0, 10, vec![]));
        assert_eq!(ids("nfs"), (4294967294, 65534, vec![]), "a name's id may be larger than any that is asked for");
        assert_eq!(find("", PASSWD, GROUP).unwrap().home, "/root");
        for (home, known) in [("/home/app", "/home/app"), ("relative", "/"), ("/a\0b", "/"), ("", "/")] {
            let passwd = format!("bad\napp:x:1000:1000::{home}:/bin/sh\n");
            assert_eq!(find("1000", passwd.as_bytes(), b"").unwrap().home, known, "{home:?}");
        }
    }

    #[test]
    fn an_image_without_these_files_has_numbers_only() {
        let user = User { uid: 5, gid: 0, groups: vec![] };
        assert_eq!(find("5", b"", b"").unwrap(), Known { user, home: "/".into() });
        assert!(find("me", b"", b"").unwrap_err().to_string().contains("no user \"me\""));
    }

    #[test]
    fn unknown_users_groups_and_ids_out_of_range_are_errors() {
        for bad in ["you", "me:nobody", "4294967294", "4294967295", "99999999999999999999", "me:4294967295", "-1"] {
            assert!(find(bad, PASSWD, GROUP).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn any_passwd_gives_an_answer(spec in ".{0,20}", passwd in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = find(&spec, &passwd, &passwd);
        }
    }
}
