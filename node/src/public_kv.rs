//! The public KV service of a node: namespaces by name, each by its mode.

use std::sync::Arc;

use bytes::Bytes;
use kv::{
    SpaceError, Spaces,
    space::{Change, Mode, Namespace, ScanQuery, SpacePage},
};

use crate::eventual::Eventual;

/// What clients of the public KV service may do. Cheap to clone.
#[derive(Clone)]
pub struct PublicKv {
    /// Names, and strong namespaces.
    pub spaces: Spaces,
    /// Eventual ones.
    pub eventual: Arc<Eventual>,
}

impl PublicKv {
    /// Makes a namespace; one of that name and mode is fine.
    pub async fn create(&self, name: &str, mode: Mode) -> Result<Namespace, SpaceError> {
        self.spaces.create(name, mode).await
    }

    /// All namespaces, by name.
    pub async fn list(&self) -> Result<Vec<Namespace>, SpaceError> {
        self.spaces.list().await
    }

    /// The values of keys, in the order asked. Strong: of one instant.
    pub async fn get(&self, name: &str, keys: &[Bytes]) -> Result<Vec<Option<Bytes>>, SpaceError> {
        let namespace = self.spaces.find(name).await?;
        match namespace.mode {
            Mode::Strong => self.spaces.get(&namespace, keys).await,
            Mode::Eventual => self.eventual.get(&namespace, keys).await,
        }
    }

    /// Makes changes. Strong: all or none at one instant, on a quorum. Eventual: accepted on this node.
    pub async fn write(&self, name: &str, changes: &[Change]) -> Result<(), SpaceError> {
        let namespace = self.spaces.find(name).await?;
        match namespace.mode {
            Mode::Strong => self.spaces.write(&namespace, changes).await,
            Mode::Eventual => self.eventual.write(&namespace, changes),
        }
    }

    /// Sets a key if it has the expected value; otherwise its value comes back. Strong namespaces only.
    pub async fn compare_and_swap(
        &self,
        name: &str,
        key: &Bytes,
        expected: Option<&Bytes>,
        value: Option<&Bytes>,
    ) -> Result<Result<(), Option<Bytes>>, SpaceError> {
        let namespace = self.spaces.find(name).await?;
        match namespace.mode {
            Mode::Strong => self.spaces.compare_and_swap(&namespace, key, expected, value).await,
            Mode::Eventual => Err(SpaceError::NotStrong(name.into(), "nobody can compare there before it writes")),
        }
    }

    /// A page of a scan.
    pub async fn scan(&self, name: &str, query: &ScanQuery) -> Result<SpacePage, SpaceError> {
        let namespace = self.spaces.find(name).await?;
        match namespace.mode {
            Mode::Strong => self.spaces.scan(&namespace, query).await,
            Mode::Eventual => self.eventual.scan(&namespace, query).await,
        }
    }
}
