//! The closed vocabulary of the log: one function per thing an operator can see happen.
//!
//! Nothing else in the node writes at level `info` or above. The name of an event and the names of
//! its fields are a promise; `deploy/LOGS.md` lists them, drawn from the same rows as the functions.
//!
//! Texts that come from outside (names, reasons, agents) are passed as `&str` and never become part
//! of a format string; the log layer escapes them, so that they cannot break a line. An absent value
//! leaves its field out.
//!
//! Events that a misbehaving peer or client can cause at will carry `suppressed` and pass through a
//! [`Limiter`] first.

mod catalogue;
mod fields;
mod limiter;

pub use catalogue::catalogue;
pub use fields::Field;
pub use limiter::{Limiter, SWEEP_EVERY, Suppressed, Unsaid};

use restante_protocol::id::{MessageId, PeerId, ProducerId};
use restante_protocol::refusal::Code;
use restante_protocol::time::WallMillis;
use std::net::{IpAddr, SocketAddr};

/// What is known about one event.
pub struct Event {
    /// Its stable name, the value of the field `event`.
    pub name: &'static str,
    /// `ERROR`: look now. `WARN`: look today. `INFO`: the node's life. `DEBUG`: for a closer look.
    pub level: tracing::Level,
    /// What has happened.
    pub meaning: &'static str,
    /// What an operator does about it.
    pub action: &'static str,
    /// Its fields, in order.
    pub fields: &'static [&'static str],
}

macro_rules! events {
    ($( $meaning:literal => $action:literal $level:ident $name:ident($($field:ident: $kind:ty),*); )*) => {
        $(
            #[doc = $meaning]
            #[allow(clippy::too_many_arguments, reason = "an event's fields are its arguments")]
            pub fn $name($($field: $kind),*) {
                tracing::event!(
                    target: "restante",
                    tracing::Level::$level,
                    event = stringify!($name),
                    $($field = Field::recorded($field)),*
                );
            }
        )*

        /// Every event, in the order of the catalogue.
        pub static EVENTS: &[Event] = &[
            $( Event {
                name: stringify!($name),
                level: tracing::Level::$level,
                meaning: $meaning,
                action: $action,
                fields: &[$(stringify!($field)),*],
            }, )*
        ];
    };
}

events! {
    // The node.

    "The program has started and opens its data directory." => "Nothing."
    INFO node_starting(version: &str, data_dir: &str, pid: u32);

    "The program cannot run a node, or could not stop it in order, and ends. Nothing confirmed is lost."
        => "As the reason says."
    ERROR node_failed(code: &str, reason: &str);

    "A variable of the environment looks like a setting and is none; it is ignored."
        => "Correct its name, or ignore this if it belongs to something else."
    WARN variable_ignored(variable: &str);

    "The node can be reached from other machines and has no login and no TLS, as it was told to."
        => "Make sure that only trusted machines reach this address."
    WARN listener_open(tcp: SocketAddr);

    "The node accepts connections and delivers." => "Nothing."
    INFO node_ready(tcp: SocketAddr, epoch: u32, peers: u64, waiting: u64, boot_ms: u64);

    "The node has been told to stop: it takes nothing new, and lets what is in flight finish."
        => "Nothing; everything confirmed is on disk and is delivered by the next start."
    INFO node_stopping(reason: &str, unacked: u64, waiting: u64);

    "The node has stopped in order." => "Nothing."
    INFO node_stopped(waiting: u64);

    "How all peers are, once a minute: how many of them up, down (any other health) and paused."
        => "Watch `waiting` and `parked` grow; the summary_peer lines after it name the worst. A `commit_ms_max` of seconds is a disk that cannot keep up or is ill: every confirm waits for it."
    INFO summary(peers: u64, up: u64, down: u64, paused: u64, waiting: u64, parked: u64, delayed: u64, confirmed: u64, acked: u64, connections: u64, journal_bytes: u64, commits: u64, commit_ms_max: u64, more: u64);

    "One of the (at most 20) worst peers, after each summary. Peers that are up with nothing waiting are never listed."
        => "See the event of its health: peer_down, peer_slow, peer_refusing, peer_failed, actor_held."
    INFO summary_peer(peer: &str, health: &str, since: WallMillis, reason: &str, waiting: u64, parked: u64, oldest: Option<WallMillis>, next_attempt: Option<WallMillis>);

    "The level filter of the log was changed by an admin message." => "Nothing."
    INFO log_filter_changed(filter: &str, by: &str);

    "The log could not be written as fast as it came, and these lines are missing before this one."
        => "Find out what reads the node's standard error so slowly, or lower the log level."
    WARN log_lines_lost(lines: u64);

    "Lines named `of` about this peer or address (about several, without either) were not written, as there were too many, and none has come since that could have said so."
        => "As for the lines themselves."
    INFO lines_suppressed(of: &str, peer: Option<&str>, address: Option<IpAddr>, lines: u64);

    "An arbiter has not answered for this long; whatever runs on it stands still."
        => "Report it with the lines before it; if it lasts, restart the node."
    ERROR watchdog_stalled(arbiter: &str, stalled_ms: u64);

    "A stalled arbiter answers again." => "Report how long it lasted."
    WARN watchdog_recovered(arbiter: &str, stalled_ms: u64);

    // The journal.

    "The journal is open and its past has been read. `clean` is false after a crash."
        => "Nothing; after a crash some messages may be delivered twice, flagged as redelivered."
    INFO journal_opened(epoch: u32, clean: bool, bytes: u64, peers: u64, waiting: u64);

    "The journal cut or set aside something while it was opened or read."
        => "A torn tail after a crash is expected and was never confirmed. Anything else means damaged storage: keep the set-aside file, check the disk."
    WARN journal_finding(finding: &str);

    "Records `first` to `last` were on disk and cannot be read any more; the rest is served. The lines that follow name the receivers concerned; unless `complete`, there may be others."
        => "Check the disk. Look at a backup for what is missing; what was set aside is in quarantine/."
    ERROR journal_damaged(file: &str, first: u64, last: u64, receivers: u64, complete: bool);

    "So many messages for this peer lie in damaged records (`at_least`, where there may be more). Those that can be named are parked as their turn comes."
        => "Have them published again; message_parked names those that can be named."
    ERROR journal_damaged_peer(file: &str, peer: &str, messages: u64, at_least: bool);

    "A write or sync failed. Nothing is confirmed or delivered until the journal has been reopened."
        => "Check the disk and the kernel's log; the node tries to reopen by itself."
    ERROR journal_poisoned(reason: &str);

    "The journal could not be opened again. The node stays up, tells every caller why, and tries at `next_attempt`."
        => "Check the disk and the kernel's log, and free space if that is what is missing."
    ERROR journal_unusable(reason: &str, next_attempt: WallMillis);

    "The journal is usable again." => "Nothing."
    INFO journal_recovered(epoch: u32);

    "Publishes are refused because the journal has reached its high-water mark or the disk is nearly full. Acks and deliveries go on."
        => "Free disk space, bring receivers back, or raise journal_bytes_max; it resumes by itself."
    ERROR disk_full(reason: &str, journal_bytes: u64);

    "Publishes are taken again." => "Nothing."
    INFO disk_ok(journal_bytes: u64);

    "A backup of the journal is being taken. Room is given back only after it." => "Nothing."
    INFO backup_started(dir: &str, by: &str);

    "A backup is complete and on disk: every record below number `next` is in it."
        => "Nothing; keep it on another machine."
    INFO backup_taken(dir: &str, files: u64, bytes: u64, next: u64);

    "A backup was not completed. What is in its directory is no backup; the journal is untouched."
        => "As the reason says; remove the directory and take another."
    WARN backup_failed(dir: &str, reason: &str);

    "Delayed messages of before the start have been read: so many wait for their time." => "Nothing."
    INFO delayed_waiting(messages: u64);

    // Connections.

    "A connection has said hello." => "Nothing."
    DEBUG connection_opened(connection: u64, remote: SocketAddr, agent: &str, producer: Option<ProducerId>);

    "A connection has ended." => "Nothing."
    DEBUG connection_closed(connection: u64, remote: SocketAddr, reason: &str, suppressed: Suppressed);

    "A connection was turned away before its hello: too many, too slow, or no common version."
        => "Raise connections_max, or look at what connects from there."
    WARN connection_refused(remote: SocketAddr, code: Code, reason: &str, suppressed: Suppressed);

    "A connection sent something that is no frame, or not at this point; it was closed."
        => "Look at the program at the other end; nothing stored was touched."
    WARN bad_frame(connection: u64, remote: SocketAddr, reason: &str, suppressed: Suppressed);

    "A newer connection speaks for the same producer identity; the older one was closed."
        => "Nothing after a reconnect. Repeated: two programs share one identity, give each its own."
    INFO producer_superseded(producer: ProducerId, connection: u64, remote: SocketAddr, suppressed: Suppressed);

    "Publishes were refused: so many at once, of which this is the first. Their producer was told."
        => "As the reason says: add the peer, wait for the disk, or slow the producer."
    INFO publish_refused(connection: u64, peer: Option<&str>, code: Code, reason: &str, messages: u64, suppressed: Suppressed);

    "A receiver was not allowed to attach."
        => "As the reason says; most often another process is attached under this name."
    WARN attach_refused(peer: &str, remote: SocketAddr, code: Code, reason: &str, suppressed: Suppressed);

    // Peers as operators change them.

    "A peer exists from now on." => "Nothing."
    INFO peer_added(peer: &str, peer_id: PeerId, url: &str, version: u64, by: &str);

    "A peer's address or settings changed; `changed` lists the values that were given." => "Nothing."
    INFO peer_changed(peer: &str, version: u64, changed: &str, by: &str);

    "A peer is held by an operator: its messages wait." => "Resume it when its receiver is ready."
    INFO peer_paused(peer: &str, version: u64, waiting: u64, by: &str);

    "Nothing new is accepted for a peer; what waits is delivered." => "Wait for `peer_drained`, or resume it."
    INFO peer_draining(peer: &str, version: u64, waiting: u64, by: &str);

    "Everything that waited for a draining peer has been delivered or parked; told again after a restart."
        => "Do with it what it was drained for; look at what is parked before it is removed."
    INFO peer_drained(peer: &str, version: u64, parked: u64);

    "A held or draining peer is served as before." => "Nothing."
    INFO peer_resumed(peer: &str, version: u64, waiting: u64, by: &str);

    "A peer is gone, also from the `groups` it was in. What waited for it was parked, purged or handed over, as `fate` says."
        => "Nothing; parked messages stay addressable as name#id."
    INFO peer_removed(peer: &str, peer_id: PeerId, fate: &str, messages: u64, groups: u64, by: &str);

    "Nothing that is stored speaks of a removed peer any more; `name#id` is not addressable now."
        => "Nothing."
    INFO peer_forgotten(peer: &str);

    "An operator deleted messages that waited or were parked for a peer, or removed it while they were delayed. Each keeps a ledger record; `reason` says why it ended early or is said late, if so."
        => "Nothing, if it was meant."
    WARN messages_purged(peer: &str, messages: u64, reason: Option<&str>, by: &str);

    "An operator has begun to delete parked messages, or a restart goes on with it; `messages` is how many it had done before."
        => "Nothing, if it was meant; `restante peer cancel` ends it."
    WARN peer_purge_started(peer: &str, filter: &str, messages: u64, by: &str);

    "Parked messages are being put at the end of a queue again, as an operator asked; after a restart it goes on, and `messages` is how many it had done before."
        => "Nothing; `restante peer cancel` ends it."
    INFO peer_replay_started(peer: &str, to: &str, filter: &str, rate: Option<u32>, messages: u64, by: &str);

    "A replay is over; `reason` says why before its end, if so." => "Nothing."
    INFO peer_replay_ended(peer: &str, to: &str, messages: u64, reason: Option<&str>, by: &str);

    "Messages that waited for a removed peer have been appended to another one's queue." => "Nothing."
    INFO handover_done(peer: &str, to: &str, messages: u64);

    "The peer that was to get a removed one's messages has been removed too, and what it had not got by then stays parked."
        => "Nothing; parked messages stay addressable as name#id."
    WARN handover_cut_short(peer: &str, messages: u64);

    "A change by an operator was refused; nothing has changed." => "As the reason says."
    WARN admin_refused(command: &str, peer: Option<&str>, group: Option<&str>, class: Option<&str>, code: Code, reason: &str, by: &str, suppressed: Suppressed);

    // Groups.

    "A group of peers exists from now on." => "Nothing."
    INFO group_added(group: &str, version: u64, changed: &str, members: u64, by: &str);

    "Peers have joined or left a group, as `changed` says; `members` is how many are in it now. What was published before goes to those that were in it then."
        => "Nothing."
    INFO group_changed(group: &str, version: u64, changed: &str, members: u64, by: &str);

    "A group is gone; its members and what waits for them stay." => "Publish to its members, or to another group."
    INFO group_removed(group: &str, version: u64, by: &str);

    // Classes.

    "A class of peers exists from now on; its rates are as `changed` says." => "Put peers into it: peer set --class."
    INFO class_added(class: &str, version: u64, changed: &str, by: &str);

    "The rates of a class have changed, as `changed` says; they hold at once for all its peers together." => "Nothing."
    INFO class_changed(class: &str, version: u64, changed: &str, by: &str);

    "A class is gone; it had no peers." => "Nothing."
    INFO class_removed(class: &str, version: u64, by: &str);

    // Peers as they behave.

    "A peer is connected and acks in time." => "Nothing."
    INFO peer_up(peer: &str, since: WallMillis, waiting: u64, suppressed: Suppressed);

    "There is no connection to a peer. Its messages wait; nothing is lost."
        => "Bring the receiver back. Redialled at `next_attempt`; without one, the receiver has to attach."
    WARN peer_down(peer: &str, since: WallMillis, reason: &str, waiting: u64, next_attempt: Option<WallMillis>, suppressed: Suppressed);

    "A peer is connected and acks late." => "Look at the receiver's load, or raise its ack timeout."
    WARN peer_slow(peer: &str, since: WallMillis, reason: &str, waiting: u64, suppressed: Suppressed);

    "A peer is connected and refuses messages." => "Look at the receiver's log for the reason."
    WARN peer_refusing(peer: &str, since: WallMillis, reason: &str, waiting: u64, suppressed: Suppressed);

    "A peer has been late several times in a row; its connection was closed and is dialled anew."
        => "Look at the receiver: it accepts connections and does not answer."
    ERROR peer_failed(peer: &str, since: WallMillis, reason: &str, waiting: u64, next_attempt: Option<WallMillis>, suppressed: Suppressed);

    "As many messages come for a peer as now, and go as now, and its quota is used up within the hour, at `full`. From then on what is published to it is refused."
        => "Bring the receiver back or make it faster, raise its quota, or slow its producers down."
    WARN peer_fills(peer: &str, full: WallMillis, waiting: u64, came_per_minute: u64, went_per_minute: u64, suppressed: Suppressed);

    "A peer's quota will not be used up within the next two hours any more." => "Nothing."
    INFO peer_fills_no_more(peer: &str, waiting: u64, suppressed: Suppressed);

    "Another attempt to reach a peer has failed; its health is unchanged."
        => "Nothing beyond peer_down."
    DEBUG dial_failed(peer: &str, failures: u32, reason: &str, next_attempt: WallMillis, suppressed: Suppressed);

    "Messages were not acked in time and are sent again, flagged as redelivered."
        => "Look at the receiver if it repeats."
    WARN messages_late(peer: &str, messages: u32, message: MessageId, in_a_row: u32, suppressed: Suppressed);

    "A receiver refused a message for now." => "Nothing; it is parked after the last attempt of the peer's schedule."
    WARN message_refused(peer: &str, message: MessageId, attempt: u32, reason: &str, next_attempt: WallMillis, suppressed: Suppressed);

    "The time to live of so many messages ended before a receiver had acked them; `message` is the first. They are not sent any more, and their records say so."
        => "Nothing, if their producers meant it; else bring the receiver back sooner, or have them publish with a longer time."
    WARN messages_expired(peer: &str, messages: u64, message: MessageId, suppressed: Suppressed);

    "A message is set aside for one receiver: it was refused too often or for good. It stays stored."
        => "Mend the receiver or the message; `restante message trace ID` shows its life."
    ERROR message_parked(peer: &str, message: MessageId, attempt: u32, reason: &str, suppressed: Suppressed);

    "A message that crashed its peer's actor twice is set aside. It stays stored."
        => "Report it with the actor_crashed lines before it."
    ERROR poison_parked(peer: &str, message: MessageId, reason: &str);

    "A receiver acked or refused a tag that was never sent to it; it was ignored."
        => "Look at the receiver's client: it counts tags wrongly."
    WARN odd_ack(peer: &str, tag: u64, suppressed: Suppressed);

    // Actors.

    "An actor met a defect. It is rebuilt from the journal; nothing is lost."
        => "Report it with the reason; `message` is what it had in hand."
    ERROR actor_crashed(actor: &str, peer: Option<&str>, message: Option<MessageId>, reason: &str, crashes: u32);

    "A crashed actor has been rebuilt and goes on." => "Nothing."
    INFO actor_restarted(actor: &str, peer: Option<&str>, restart_ms: u64);

    "An actor crashes too often and is held for a while; its messages wait."
        => "Report it; `restante peer pause` stops the attempts."
    ERROR actor_held(actor: &str, peer: Option<&str>, crashes: u32, next_attempt: WallMillis);
}
