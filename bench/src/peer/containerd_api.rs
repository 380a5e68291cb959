//! The part of containerd's gRPC API that is called, compiled from `bench/proto`.
#![allow(unused_qualifications)]

pub(super) mod containerd {
    pub(crate) mod types {
        tonic::include_proto!("containerd.types");
    }
    pub(crate) mod services {
        pub(crate) mod snapshots {
            pub(crate) mod v1 {
                tonic::include_proto!("containerd.services.snapshots.v1");
            }
        }
        pub(crate) mod containers {
            pub(crate) mod v1 {
                tonic::include_proto!("containerd.services.containers.v1");
            }
        }
        pub(crate) mod tasks {
            pub(crate) mod v1 {
                tonic::include_proto!("containerd.services.tasks.v1");
            }
        }
    }
}

pub(super) use containerd::services::containers::v1 as containers;
pub(super) use containerd::services::snapshots::v1 as snapshots;
pub(super) use containerd::services::tasks::v1 as tasks;
pub(super) use containerd::types;
