//! The image store from outside: archives go in, root file systems come out. Needs root, and nothing else.

mod archive;
mod fixture;
mod formats;
mod fuzz;
mod hostile;
mod overlay;
mod pulls;
mod registry;
mod sharing;
mod users;
