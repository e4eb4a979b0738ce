//! A broker as a child process: started on a free port and a fresh directory, measured from `/proc`,
//! gone with its directory when the run is over, however it ends.

use super::failure::{Context, Failure, Result, failure};
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a broker may take to accept connections, and how often that is tried.
const READY_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(2);
/// How long killed processes may take to be gone.
const GONE_MAX: Duration = Duration::from_secs(10);
/// What of a failed server's output is shown, in bytes from its end.
const LOG_SHOWN: usize = 1_500;
/// The first argument by which this program runs another one that dies with it.
pub(crate) const LAUNCH: &str = "launch-child";

/// A program and how it is started; kept, so that it can be killed and started again.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
}

impl Launch {
    pub(crate) fn new(program: impl Into<PathBuf>, arguments: &[&str]) -> Launch {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Launch { program: program.into(), arguments, environment: Vec::new() }
    }
}

/// A directory that is removed with everything in it.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(parent: &Path) -> Result<Scratch> {
        let path = parent.join(format!("versus-{:08x}", rand::random::<u32>()));
        fs::create_dir(&path).context(path.display())?;
        Ok(Scratch(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} is left behind: {error}", self.0.display());
        }
    }
}

/// A running broker, in the order in which its parts end.
#[derive(Debug)]
pub(crate) struct Server {
    child: Process,
    /// What it needs beside it, such as a name server.
    _beside: Option<Process>,
    launch: Launch,
    scratch: Scratch,
    pub(crate) port: u16,
    data: PathBuf,
}

impl Server {
    /// Starts what `launch` says for a port and a directory, and awaits that the port answers.
    pub(crate) fn start(
        scratch: Scratch,
        port: u16,
        launch: Launch,
        beside: Option<Process>,
    ) -> Result<Server> {
        let data = scratch.path().join("data");
        let child = Process::start(&launch, &scratch.path().join("log"))?;
        let mut server = Server { child, _beside: beside, launch, scratch, port, data };
        server.await_port()?;
        Ok(server)
    }

    /// Ends it without warning. The page cache stays.
    pub(crate) fn kill(&mut self) {
        self.child.end();
    }

    /// Asks it to end and awaits that.
    pub(crate) fn end_in_order(&mut self, time: Duration) -> Result<()> {
        // A tool around it ends after it, and with all it has counted; asked itself it might not.
        let tree = self.child.tree();
        let own = self.child.0.id();
        for pid in tree.keys().filter(|pid| **pid != own || tree.len() == 1) {
            if let Some(pid) = i32::try_from(*pid).ok().and_then(Pid::from_raw) {
                // Fails only when it has gone already.
                let _ = kill_process(pid, Signal::TERM);
            }
        }
        let end = Instant::now() + time;
        while !self.child.ended() {
            if Instant::now() > end {
                return Err(failure!("it does not end in {time:?}"));
            }
            sleep(LOOK);
        }
        Ok(())
    }

    /// Starts it again on what it has left behind, without waiting for it.
    pub(crate) fn start_again(&mut self) -> Result<()> {
        self.child = Process::start(&self.launch, &self.log())?;
        Ok(())
    }

    fn log(&self) -> PathBuf {
        self.scratch.path().join("log")
    }

    fn await_port(&mut self) -> Result<()> {
        let end = Instant::now() + READY_MAX;
        loop {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return Ok(());
            }
            if self.child.ended() || Instant::now() > end {
                let log = fs::read(self.log()).unwrap_or_default();
                let tail = &log[log.len().saturating_sub(LOG_SHOWN)..];
                return Err(failure!("it does not begin: {}", String::from_utf8_lossy(tail)));
            }
            sleep(LOOK);
        }
    }

    /// Processor time since it began, in seconds.
    pub(crate) fn cpu_s(&self) -> f64 {
        self.child.tree().values().map(|stat| stat.cpu_s).sum()
    }

    /// The most memory it had in RAM, in bytes.
    pub(crate) fn memory_peak_bytes(&self) -> u64 {
        self.memory("VmHWM:")
    }

    /// What it has in RAM now, in bytes.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory("VmRSS:")
    }

    fn memory(&self, field: &str) -> u64 {
        self.child.tree().keys().map(|pid| status_bytes(*pid, field)).sum()
    }

    /// What its data takes on disk now, in bytes.
    pub(crate) fn disk_bytes(&self) -> u64 {
        disk_bytes(&self.data)
    }
}

/// The directory for a server's data, made.
pub(crate) fn data_dir(scratch: &Scratch) -> Result<PathBuf> {
    let data = scratch.path().join("data");
    fs::create_dir_all(&data).context(data.display())?;
    Ok(data)
}

/// A port that nobody listens on now.
pub(crate) fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    Ok(listener.local_addr()?.port())
}

/// Where a program is, in `PATH` or in places where a system keeps servers.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|path| path.is_file());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places =
        std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(From::from));
    places.map(|place| place.join(name)).find(|path| path.is_file())
}

/// A process that is killed, and everything it has started, when it is dropped.
#[derive(Debug)]
pub(crate) struct Process(Child);

#[derive(Clone, Copy, Debug)]
struct Stat {
    parent: u32,
    /// Its own processor time and that of children it has buried, in seconds.
    cpu_s: f64,
}

impl Process {
    /// Starts it by way of this program, so that it dies with it even if that is killed.
    pub(crate) fn start(launch: &Launch, log: &Path) -> Result<Process> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(LAUNCH).arg(&launch.program).args(&launch.arguments);
        command.envs(launch.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().context(launch.program.display())?;
        Ok(Process(child))
    }

    fn ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
    }

    /// It and what descends from it, by pid.
    fn tree(&self) -> BTreeMap<u32, Stat> {
        let all = processes();
        let mut tree = BTreeSet::from([self.0.id()]);
        loop {
            let more: Vec<u32> = all
                .iter()
                .filter(|(pid, stat)| tree.contains(&stat.parent) && !tree.contains(*pid))
                .map(|(pid, _)| *pid)
                .collect();
            if more.is_empty() {
                return all.into_iter().filter(|(pid, _)| tree.contains(pid)).collect();
            }
            tree.extend(more);
        }
    }

    fn end(&mut self) {
        let tree = self.tree();
        // Fails only when it has gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
        let kill = |pid: &u32| {
            let pid = i32::try_from(*pid).ok().and_then(Pid::from_raw);
            pid.is_some_and(|pid| kill_process(pid, Signal::KILL).is_ok())
        };
        let rest = || tree.keys().filter(|pid| **pid != self.0.id());
        rest().for_each(|pid| {
            kill(pid);
        });
        let end = Instant::now() + GONE_MAX;
        while rest().any(|pid| Path::new(&format!("/proc/{pid}/exe")).read_link().is_ok())
            && Instant::now() < end
        {
            sleep(LOOK);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// What [`LAUNCH`] asks for: becomes another program that is killed when its parent dies.
pub(crate) fn launch(arguments: &[String]) -> Failure {
    let Some((program, arguments)) = arguments.split_first() else {
        return failure!("{LAUNCH}: which program?");
    };
    // Where the system has no such thing, a killed run leaves its servers behind.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    Command::new(program).args(arguments).exec().into()
}

fn processes() -> BTreeMap<u32, Stat> {
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, stat(&text, ticks)?))
    })
    .collect()
}

fn stat(text: &str, ticks_per_second: f64) -> Option<Stat> {
    // The second field is the program's name in parentheses, which may hold anything.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    let ticks: u64 = (11..15).filter_map(number).sum();
    let parent = u32::try_from(number(1)?).ok()?;
    Some(Stat { parent, cpu_s: ticks as f64 / ticks_per_second })
}

fn status_bytes(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    let kib = line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0);
    1_024 * kib
}

fn disk_bytes(path: &Path) -> u64 {
    let Ok(meta) = fs::symlink_metadata(path) else { return 0 };
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    512 * meta.blocks() + entries.map(|entry| disk_bytes(&entry.path())).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_program_name_does_not_shift_the_fields() {
        let text = "7 (a) R 1 (b)) S 4 7 7 0 -1 4194560 1 2 3 4 250 50 60 40 20 0 1 0 5 6 7";
        let stat = stat(text, 100.0).unwrap();
        assert_eq!((stat.parent, stat.cpu_s), (4, 4.0));
    }

    #[test]
    fn disk_is_what_is_allocated() {
        let dir = tempfile::tempdir().unwrap();
        let before = disk_bytes(dir.path());
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b"), vec![7; 100_000]).unwrap();
        assert!(disk_bytes(dir.path()) >= before + 100_000);
    }
}
