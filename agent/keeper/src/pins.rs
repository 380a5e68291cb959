//! Pins of images: descriptors that keep an image's layers on the disk (`fsb_image::Pin`).
//!
//! The agent pins what it uses, but it may die at any instruction, and until the next one has pinned again another agent
//! of the node could remove the layers below a sandbox that runs. So a pin comes with each request for a container, and
//! the container keeps it for as long as it lives: what must survive a crash does not live in the thing that crashes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};

/// The pin of one image, held by all of its containers together.
pub(crate) type Pin = Rc<OwnedFd>;

/// The pins that are held, by image digest: one descriptor each, however many containers there are.
#[derive(Default)]
pub(crate) struct Pins(RefCell<HashMap<String, Weak<OwnedFd>>>);

impl Pins {
    /// The pin of `image`: the one that is held already, or this one.
    pub(crate) fn hold(&self, image: &str, pin: OwnedFd) -> Pin {
        let mut pins = self.0.borrow_mut();
        if let Some(held) = pins.get(image).and_then(Weak::upgrade) {
            return held;
        }
        pins.retain(|_, pin| pin.strong_count() > 0);
        let pin = Rc::new(pin);
        pins.insert(image.to_owned(), Rc::downgrade(&pin));
        pin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor() -> OwnedFd {
        std::fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn an_image_has_one_pin_until_the_last_container_lets_go_of_it() {
        let pins = Pins::default();
        let first = pins.hold("a", descriptor());
        let second = pins.hold("a", descriptor());
        assert!(Rc::ptr_eq(&first, &second));
        let held = Rc::downgrade(&first);
        drop(first);
        assert!(held.upgrade().is_some());
        drop(second);
        assert!(held.upgrade().is_none());
        let _other = pins.hold("b", descriptor());
        assert_eq!(pins.0.borrow().len(), 1, "what is not held is forgotten");
    }
}
