//! A throw-away machine: this host's files below an overlay, and processes, mounts, control groups and name of its own,
//! with Debian's systemd as its first process. Of the host it shares the kernel, and a network namespace of the testbed.
//!
//! What is installed, pinned or started on it goes with it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::netns::NsHandle;
use crate::owner::{OwnedDir, unique_name};
use crate::process::{self, Process};

const SOON: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(20);

/// Where systemd is on Debian.
const INIT: &str = "/lib/systemd/systemd";

/// Makes the machine's file system, and becomes its first process. Arguments: a directory and the cgroup.
const BOOT: &str = r#"
set -e
echo 0 > "$2/cgroup.procs"
exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup --propagation private -- /bin/sh -e -c '
    mount -t tmpfs -o mode=755 machine "$1"
    cd "$1"
    mkdir upper work root
    mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work overlay root
    cd root
    mount -t proc proc proc
    mount -t sysfs sysfs sys
    mount -t cgroup2 cgroup2 sys/fs/cgroup
    mount -t bpf -o mode=700 bpf sys/fs/bpf
    mount -t tmpfs -o mode=755 dev dev
    for name in null zero full random urandom; do
        touch dev/$name
        mount --bind /dev/$name dev/$name
    done
    mount -t tmpfs -o mode=755 run run
    mount -t tmpfs -o mode=1777 tmp tmp
    # What this host starts is not for the machine.
    rm -rf etc/systemd/system etc/sluice var/log/sluice.log
    mkdir -p etc/systemd/system
    printf "[Unit]\nDescription=A machine\nDefaultDependencies=no\n" > etc/systemd/system/machine.target
    for name in journald udevd logind tmpfiles-setup sysctl; do
        ln -s /dev/null etc/systemd/system/systemd-$name.service
    done
    hostname machine
    container=sluice-testbed exec chroot . /lib/systemd/systemd --system --unit=machine.target \
        --log-target=console --show-status=0
' sh "$1"
"#;

/// A machine that runs. Dropped, nothing is left of it.
#[derive(Debug)]
pub struct Machine {
    /// Its first process.
    init: u32,
    process: Process,
    network: NsHandle,
    _cgroup: Cgroup,
    _directory: OwnedDir,
}

impl Machine {
    /// Boots one that has `network` for its own.
    pub fn boot(network: &NsHandle) -> Result<Self> {
        ensure!(Path::new(INIT).exists(), "{INIT}: not there: apt-get install -y systemd");
        let directory = OwnedDir::scratch("machine")?;
        let cgroup = Cgroup::new()?;
        let mut command = network.command("/bin/sh");
        command.args(["-c", BOOT, "sh"]).arg(directory.path()).arg(&cgroup.0);
        let process = Process::spawn("machine", command)?;
        let mut machine = Self {
            init: 0,
            process,
            network: network.clone(),
            _cgroup: cgroup,
            _directory: directory,
        };
        machine.wait_up()?;
        Ok(machine)
    }

    fn wait_up(&mut self) -> Result<()> {
        let end = Instant::now() + SOON;
        loop {
            self.init = self.first_process().unwrap_or(0);
            let state = match self.init {
                0 => String::new(),
                _ => self.run_anyway(&["systemctl", "is-system-running"])?,
            };
            if ["running", "degraded"].contains(&state.trim()) {
                return Ok(());
            }
            if Instant::now() >= end || !self.process.is_running() {
                let said = self.process.output().join("\n");
                bail!("the machine is not up ({:?}); it said:\n{said}", state.trim());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The only child of `unshare`, once it is systemd.
    fn first_process(&self) -> Option<u32> {
        let parent = self.process.pid();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
        let pid = children.split_whitespace().next()?.parse().ok()?;
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "systemd").then_some(pid)
    }

    /// A file of the machine, as this process reaches it.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        Path::new("/proc")
            .join(self.init.to_string())
            .join("root")
            .join(path.trim_start_matches('/'))
    }

    /// Whether it has such a file; a link counts as one, wherever it leads.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    /// Writes a file, and the directories that it needs.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        path.parent().map(fs::create_dir_all).transpose()?;
        fs::write(&path, text).with_context(|| path.display().to_string())
    }

    pub fn read(&self, path: &str) -> Result<String> {
        let path = self.path(path);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Runs a program on the machine to its end, and returns what it printed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        process::run(self.command(words).env("LC_ALL", "C.UTF-8"))
    }

    /// The same for one that may fail: what it printed.
    fn run_anyway(&self, words: &[&str]) -> Result<String> {
        let output = self.command(words).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// A program on the machine.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.network.command("nsenter");
        let target = self.init.to_string();
        command.args(["--target", &target, "--mount", "--pid", "--uts", "--ipc", "--cgroup"]);
        command.args(["--root", "--wd", "--"]).args(words);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("HOME", "/root");
        command
    }

    /// A property of a unit, as `systemctl show` has it.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        let value = self.run(&["systemctl", "show", unit, "--property", name, "--value"])?;
        Ok(value.trim().to_owned())
    }

    /// Waits until a property is as wished, and returns it.
    pub fn wait_property(
        &self,
        unit: &str,
        name: &str,
        wish: impl Fn(&str) -> bool,
    ) -> Result<String> {
        let end = Instant::now() + SOON;
        loop {
            let value = self.property(unit, name)?;
            if wish(&value) {
                return Ok(value);
            }
            if Instant::now() >= end {
                bail!("{unit}: {name} is still {value:?} after {SOON:?}");
            }
            std::thread::sleep(LOOK);
        }
    }

    /// What systemd has said.
    #[must_use]
    pub fn log(&self) -> String {
        self.process.output().join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the machine said:\n{}", self.log());
        }
        // All of its processes end with the first, and those that enter it.
        if let Some(init) = self.first_process() {
            let init = nix::unistd::Pid::from_raw(init.cast_signed());
            let _ = nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.process.wait(SOON);
    }
}

/// A control group of one's own, below which systemd makes those of its units.
#[derive(Debug)]
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Result<Self> {
        let mounts = fs::read_to_string("/proc/mounts")?;
        let of_version_2 = |line: &str| {
            let mut fields = line.split(' ').skip(1);
            let path = fields.next()?.to_owned();
            (fields.next() == Some("cgroup2")).then_some(path)
        };
        let root = mounts.lines().find_map(of_version_2);
        let root = root.context("no cgroup2 is mounted: mount -t cgroup2 none /sys/fs/cgroup")?;
        let path = Path::new(&root).join(unique_name("machine"));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let end = Instant::now() + SOON;
        // Its last processes may be on their way out.
        while let Err(error) = remove(&self.0) {
            if Instant::now() >= end {
                eprintln!("{}: cannot remove: {error}", self.0.display());
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// What is in a control group are files of the kernel; only directories can be removed, and only empty ones.
fn remove(cgroup: &Path) -> io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    fs::remove_dir(cgroup)
}
