//! Notices that the configuration file was saved.
//!
//! The directory is watched and not the file, since editors and configuration managers put a new file in the old one's
//! place. Whether the text is another one is for whoever reads it to see.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};
use tokio::sync::mpsc;

/// How long the directory must be quiet: a file that is being written is not read in half.
const QUIET: Duration = Duration::from_millis(150);
/// A directory that is never quiet for so long is looked at all the same.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells of changes near a file until it is dropped.
pub struct FileWatch {
    #[expect(dead_code, reason = "it watches for as long as it lives")]
    watcher: RecommendedWatcher,
    changes: mpsc::Receiver<()>,
}

impl FileWatch {
    /// Watches the directory that `file` is in.
    pub fn new(file: &Path) -> Result<Self> {
        Self::of_all(&[file])
    }

    /// Watches the directories that any of the files is in.
    pub fn of_all(files: &[&Path]) -> Result<Self> {
        let directory = |file: &&Path| match file.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        // One that waits says as much as many.
        let (sender, raw) = mpsc::channel(1);
        let (quiet, changes) = mpsc::channel(1);
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error may be an overrun: then anything may have changed.
            if event.as_ref().map_or(true, is_change) {
                let _ = sender.try_send(());
            }
        })
        .context("cannot watch files")?;
        for directory in files.iter().map(directory).collect::<BTreeSet<_>>() {
            watcher
                .watch(&directory, RecursiveMode::NonRecursive)
                .with_context(|| format!("{}: cannot be watched", directory.display()))?;
        }
        tokio::spawn(gather(raw, quiet));
        Ok(Self { watcher, changes })
    }

    /// Waits until something changed and all is quiet again. May be dropped while it waits: no change is lost.
    pub async fn changed(&mut self) {
        if self.changes.recv().await.is_none() {
            // The watcher's thread has ended, which it does only on errors of the kernel. SIGHUP is left.
            std::future::pending::<()>().await;
        }
    }
}

/// Makes one change of many that come in quick succession.
async fn gather(mut raw: mpsc::Receiver<()>, quiet: mpsc::Sender<()>) {
    while raw.recv().await.is_some() {
        let until_quiet =
            async { while let Ok(Some(())) = tokio::time::timeout(QUIET, raw.recv()).await {} };
        // Over either way: quiet, or patience lost.
        let _ = tokio::time::timeout(PATIENCE, until_quiet).await;
        if quiet.send(()).await.is_err() {
            return;
        }
    }
}

/// Whether a file may have other contents now. Reading the file is an event, too.
fn is_change(event: &Event) -> bool {
    match event.kind {
        EventKind::Access(kind) => kind == AccessKind::Close(AccessMode::Write),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[tokio::test]
    async fn saving_in_place_and_putting_another_in_its_place_are_noticed_and_reading_is_not() {
        let directory = std::env::temp_dir().join(format!("sluice-watch-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let file = directory.join("edge.toml");
        fs::write(&file, "a").unwrap();
        let mut watch = FileWatch::new(&file).unwrap();

        fs::write(&file, "b").unwrap();
        watch.changed().await;
        fs::write(directory.join("new"), "c").unwrap();
        fs::rename(directory.join("new"), &file).unwrap();
        watch.changed().await;
        assert_eq!(fs::read_to_string(&file).unwrap(), "c");
        let nothing = tokio::time::timeout(3 * QUIET, watch.changed()).await;
        assert!(nothing.is_err(), "reading is no change");
        fs::remove_dir_all(directory).unwrap();
    }
}
