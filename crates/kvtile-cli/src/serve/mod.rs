//! `kvtile serve`: the node daemon, and the status of one.

mod publish;
mod status;
mod sweeper;

use std::{num::NonZeroUsize, path::PathBuf, sync::Arc, sync::mpsc, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use kvtile::{
    Cache, CacheBuilder, CacheSettings, GroupCache, GroupCacheSettings, TierError, TierId,
    blocks::{
        policy::PolicyKind,
        pool::{TenantId, TenantQuota},
    },
    shared::{
        store::{Deadline, SharedStore},
        tier::{SharedTier, SharedTierSettings},
    },
    tiers::{
        cache::{TierSettings, TierWrites},
        groups::GroupCacheBuilder,
    },
};
use kvtile_daemon::{CacheMaker, Daemon, DaemonDisk, DaemonSettings, ServedCache};
use kvtile_http::CacheReport;

use publish::{EventArgs, ServedEvents};
use sweeper::{SweepOptions, Sweeper};

use crate::{
    error::CliError,
    numbers,
    output::{self, thousands},
    policy,
};

/// The end of `--help`.
pub(crate) const EXAMPLES: &str = "\
The daemon owns host memory, a disk and a shared store for all processes of one user on this machine;
they connect with `kvtile.Cache(connect=SOCKET)` or `Cache::connect` and share all blocks. It runs until
Ctrl-C or SIGTERM; then it writes the blocks of host memory to the disk and removes the socket. Processes
that are connected go on without it, and connect again when it is back.

Examples:
  kvtile serve --socket /run/user/1000/kv.sock --host 64GiB
  kvtile serve --socket kv.sock --host 64GiB --disk /var/cache/kv --disk-bytes 500GB
  kvtile serve --socket kv.sock --host 64GiB --shared s3://models/kv
  kvtile serve --socket kv.sock --host 64GiB --identities 8          the ranks of a model are one each
  kvtile serve --socket kv.sock --host 64GiB --policy lru --quota 7=20000 --quota 8=5000
  kvtile serve --socket kv.sock --host 64GiB --http 127.0.0.1:9090    a page and metrics
  kvtile serve --socket kv.sock --host 64GiB --shared /mnt/kv --shared-capacity 2TB    and sweeps the store
  kvtile serve --socket kv.sock --host 64GiB --events 'tcp://*:5557' --events-replay 'tcp://*:6557'
  kvtile serve status --socket kv.sock --json";

/// Arguments of `kvtile serve`.
#[derive(Args, Debug)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct ServeArgs {
    #[command(subcommand)]
    command: Option<ServeCommand>,
    /// The Unix socket to serve; its folder must exist
    #[arg(long, value_name = "PATH", required = true)]
    socket: Option<PathBuf>,
    /// Host memory for blocks, of all identities together
    #[arg(long, value_name = "BYTES", value_parser = numbers::parse_bytes, required = true)]
    host: Option<u64>,
    /// A folder for blocks that host memory evicts, and that survive a restart
    #[arg(long, value_name = "DIR", requires = "disk_bytes")]
    disk: Option<PathBuf>,
    /// The size of the disk, of all identities together
    #[arg(long, value_name = "BYTES", value_parser = numbers::parse_bytes, requires = "disk")]
    disk_bytes: Option<u64>,
    /// When blocks are written to the disk
    #[arg(
        long,
        value_name = "WHEN",
        default_value = "eviction",
        requires = "disk"
    )]
    disk_writes: DiskWrites,
    /// The eviction policy of host memory: gittins, lru, arc or s3-fifo
    #[arg(long, value_name = "NAME", value_parser = policy::parse, default_value = PolicyKind::Gittins.name())]
    policy: PolicyKind,
    /// The eviction policy of the disk
    #[arg(long, value_name = "NAME", value_parser = policy::parse, default_value = PolicyKind::Gittins.name(),
          requires = "disk")]
    disk_policy: PolicyKind,
    /// At most so many blocks of host memory for a tenant, of each identity; once for each tenant
    #[arg(long, value_name = "TENANT=BLOCKS", value_parser = quota)]
    quota: Vec<TenantQuota>,
    /// A store that the daemons of other machines use too: a folder or a URL, as for `kvtile cache sweep`
    #[arg(long, value_name = "STORE")]
    shared: Option<String>,
    /// Compress blocks for the store, without loss; every daemon reads compressed blocks
    #[arg(long, requires = "shared")]
    shared_compress: bool,
    #[command(flatten)]
    sweeps: SweepOptions,
    /// Models, or ranks of one, at a time; each has an equal, fixed share of host memory and disk
    #[arg(long, value_name = "N", default_value_t = 1)]
    identities: usize,
    /// How long a client may copy out of blocks that it holds
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    lease: u64,
    /// Serve the numbers of all caches over HTTP: a page, /metrics for Prometheus, /stats.json
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    #[command(flatten)]
    events: EventArgs,
    /// Worker threads of each cache
    #[arg(long, value_name = "N", default_value_t = 2)]
    workers: usize,
    /// Take the memory of a cache when it opens, not when blocks come
    #[arg(long)]
    prefault: bool,
}

/// `7=20000`: the blocks of a tenant.
fn quota(text: &str) -> Result<TenantQuota, String> {
    let problem = || "give TENANT=BLOCKS, such as 7=20000, with at least one block".to_owned();
    let (tenant, blocks) = text.split_once('=').ok_or_else(problem)?;
    let tenant: u32 = tenant.trim().parse().map_err(|_| problem())?;
    let blocks: NonZeroUsize = blocks.trim().parse().map_err(|_| problem())?;
    Ok(TenantQuota {
        tenant: TenantId(tenant),
        blocks: blocks.get(),
    })
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DiskWrites {
    /// When host memory evicts them, and at the end
    Eviction,
    /// Right after they are stored
    Once,
}

#[derive(Subcommand, Debug)]
enum ServeCommand {
    /// Show the clients and the caches of a daemon
    Status(status::StatusArgs),
}

/// Runs the command.
pub(crate) fn run(args: &ServeArgs) -> Result<(), CliError> {
    match &args.command {
        Some(ServeCommand::Status(args)) => status::run(args),
        None => serve(args),
    }
}

fn serve(args: &ServeArgs) -> Result<(), CliError> {
    let missing = |option: &'static str| CliError::Option {
        option,
        value: String::new(),
        problem: "it is missing".to_owned(),
    };
    let socket = args.socket.clone().ok_or(missing("--socket"))?;
    let host = args.host.ok_or(missing("--host"))?;
    let mut settings = DaemonSettings::new(socket, host)
        .identities_max(args.identities)
        .lease(Duration::from_secs(args.lease))
        .workers(args.workers)
        .prefault(args.prefault)
        .quotas(args.quota.clone());
    settings.policy = args.policy;
    if let (Some(folder), Some(bytes)) = (&args.disk, args.disk_bytes) {
        settings.disk = Some(DaemonDisk {
            folder: folder.clone(),
            bytes,
            writes: Some(match args.disk_writes {
                DiskWrites::Eviction => TierWrites::OnEviction,
                DiskWrites::Once => TierWrites::AtOnce,
            }),
            policy: args.disk_policy,
        });
    }
    let (stop, stopped) = mpsc::channel();
    // Installed before the socket exists, so that no signal leaves it behind.
    let handler = ctrlc::set_handler(move || {
        // The command may have ended.
        let _ = stop.send(());
    });
    handler.map_err(|error| CliError::Option {
        option: "signals",
        value: String::new(),
        problem: error.to_string(),
    })?;
    let maker = ServedMaker::open(args)?;
    let daemon = Daemon::start_with(settings.clone(), Arc::clone(&maker) as Arc<dyn CacheMaker>)?;
    let sweeper = Sweeper::start(&args.sweeps, maker.store.as_ref())?;
    output::print(&format!("serving {}\n", settings.socket.display()))?;
    let page = args.http.as_deref().map(|address| {
        let caches = daemon.open_caches();
        kvtile_http::serve(address, move || {
            let open = caches.list();
            let reports = |(name, served): &(String, Arc<ServedCache>)| {
                let caches = served.caches();
                let report = |(group, cache): (Option<&str>, &Cache)| {
                    CacheReport::of(&ServedCache::full_name(name, group), cache)
                };
                caches.map(report).collect::<Vec<CacheReport>>()
            };
            open.iter().flat_map(reports).collect()
        })
    });
    let page = page.transpose()?;
    if let Some(page) = &page {
        output::print(&format!("numbers at {}\n", page.url()))?;
    }
    // It ends with a signal only; the handler keeps the other end.
    let _ = stopped.recv();
    drop((page, sweeper));
    for (name, flushed) in daemon.stop() {
        output::print(&format!(
            "{name}: {} of {} blocks of host memory are durable\n",
            thousands((flushed.wanted - not_durable(&flushed)) as u64),
            thousands(flushed.wanted as u64)
        ))?;
    }
    if let Some(events) = &maker.events {
        events.close();
    }
    Ok(())
}

fn not_durable(flushed: &kvtile::FlushReport) -> usize {
    let lost = flushed.no_tier + flushed.no_room + flushed.late + flushed.failed;
    lost.min(flushed.wanted)
}

/// Makes the caches, each with a shared tier over one store if there is one, and publishes their events.
struct ServedMaker {
    store: Option<Arc<dyn SharedStore>>,
    compress: bool,
    events: Option<ServedEvents>,
}

impl ServedMaker {
    fn open(args: &ServeArgs) -> Result<Arc<ServedMaker>, CliError> {
        let by = Deadline::within(Duration::from_secs(60));
        let store = args.shared.as_deref();
        let store = store.map(|text| kvtile_shared_open::open_store(text, by));
        let store = store.transpose().map_err(TierError::outside)?;
        Ok(Arc::new(ServedMaker {
            store,
            compress: args.shared_compress,
            events: ServedEvents::bind(&args.events, args.identities)?,
        }))
    }

    /// The shared tier of one cache.
    fn tier(&self) -> Option<(TierSettings, Arc<dyn SharedStore>, SharedTierSettings)> {
        let store = Arc::clone(self.store.as_ref()?);
        let settings = SharedTierSettings::new().compress(self.compress);
        let tier = TierSettings::default()
            .writes(TierWrites::AtOnce)
            .answer_within(settings.read_within.max(settings.write_within));
        Some((tier, store, settings))
    }
}

impl CacheMaker for ServedMaker {
    fn cache(&self, settings: CacheSettings) -> Result<CacheBuilder, TierError> {
        let builder = Cache::builder(settings);
        Ok(match self.tier() {
            Some((tier, store, settings)) => {
                let open = SharedTier::opener(TierId::SHARED, store, settings);
                builder.tier(tier, open)
            }
            None => builder,
        })
    }

    fn groups(&self, settings: GroupCacheSettings) -> Result<GroupCacheBuilder, TierError> {
        let builder = GroupCache::builder(settings);
        Ok(match self.tier() {
            Some((tier, store, settings)) => {
                let open = SharedTier::opener(TierId::SHARED, store, settings);
                builder.tier(tier, open)
            }
            None => builder,
        })
    }

    fn opened(&self, name: &str, cache: &ServedCache) -> Result<(), TierError> {
        match &self.events {
            Some(events) => events.publish(name, cache),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_a_tenant_and_its_blocks() {
        let quota = |text| quota(text).map(|quota| (quota.tenant.0, quota.blocks));
        assert_eq!(quota("7=20000"), Ok((7, 20_000)));
        assert_eq!(quota(" 0 = 1 "), Ok((0, 1)));
        for text in [
            "",
            "7",
            "7=",
            "=1",
            "7=0",
            "7=-1",
            "7=1=2",
            "a=1",
            "4294967296=1",
            "7=1k",
        ] {
            assert!(quota(text).unwrap_err().contains("TENANT=BLOCKS"), "{text}");
        }
        assert_eq!(policy::parse("s3-fifo"), Ok(PolicyKind::S3Fifo));
        assert!(policy::parse("LRU").unwrap_err().contains("gittins"));
    }
}
