//! A small server with the part of the interface of S3 that the store uses, in this process, which fails where a
//! test plans it.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use kvtile_shared::store::Deadline;
use kvtile_shared_object::ObjectBucket;

/// The bucket.
pub(crate) const BUCKET: &str = "values";

/// How a request fails.
#[derive(Clone, Debug)]
pub(crate) enum ServerFault {
    /// An answer with this status, these header lines and this body.
    Answer(u16, &'static str, &'static str),
    /// The connection ends after this many bytes of the body.
    Cut(usize),
}

/// A fault of the next requests that begin with a text, such as `GET`.
struct ScriptedFault {
    begins: String,
    fault: ServerFault,
    times: usize,
}

/// Objects by their keys: the bytes, and when they were written.
type ServerObjects = BTreeMap<String, (Arc<[u8]>, SystemTime)>;

#[derive(Default)]
struct ServerState {
    objects: Mutex<ServerObjects>,
    faults: Mutex<Vec<ScriptedFault>>,
    /// Method, path and range of each request.
    requests: Mutex<Vec<String>>,
    /// Seconds that its clock is ahead of this machine's.
    ahead: AtomicI64,
}

/// The server. Its threads end with the process.
pub(crate) struct ScriptedServer {
    port: u16,
    state: Arc<ServerState>,
}

impl ScriptedServer {
    pub(crate) fn start() -> ScriptedServer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(ServerState::default());
        let shared = Arc::clone(&state);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                thread::spawn(move || serve(&state, stream));
            }
        });
        ScriptedServer { port, state }
    }

    /// Opens the store at a prefix.
    pub(crate) fn open(&self, prefix: &str) -> ObjectBucket {
        let server = format!("http://127.0.0.1:{}", self.port);
        let url = format!("s3://{BUCKET}/{prefix}?endpoint={server}&region=r&anonymous=true");
        let by = Deadline::within(Duration::from_secs(30));
        ObjectBucket::open(&url.parse().unwrap(), by).unwrap()
    }

    /// The next `times` requests that begin with `begins` fail.
    pub(crate) fn fail(&self, begins: &str, fault: ServerFault, times: usize) {
        let begins = begins.to_owned();
        let planned = ScriptedFault {
            begins,
            fault,
            times,
        };
        self.state.faults.lock().unwrap().push(planned);
    }

    /// Ends all faults.
    pub(crate) fn recover(&self) {
        self.state.faults.lock().unwrap().clear();
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.requests.lock().unwrap())
    }

    /// Sets the clock of the server, in seconds ahead of this machine's.
    pub(crate) fn set_ahead(&self, seconds: i64) {
        self.state.ahead.store(seconds, Ordering::SeqCst);
    }

    /// Adds an object that was written `age` ago by the clock of the server.
    pub(crate) fn add(&self, name: &str, bytes: usize, age: Duration) {
        let object = (vec![7; bytes].into(), self.state.now() - age);
        let mut objects = self.state.objects.lock().unwrap();
        objects.insert(name.to_owned(), object);
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.state.objects.lock().unwrap().contains_key(name)
    }
}

impl ServerState {
    fn now(&self) -> SystemTime {
        let ahead = self.ahead.load(Ordering::SeqCst);
        let by = Duration::from_secs(ahead.unsigned_abs());
        match ahead < 0 {
            true => SystemTime::now() - by,
            false => SystemTime::now() + by,
        }
    }

    fn fault_of(&self, request: &str) -> Option<ServerFault> {
        let mut faults = self.faults.lock().unwrap();
        let mut due = faults.iter_mut();
        let due = due.find(|planned| planned.times > 0 && request.starts_with(&planned.begins))?;
        due.times -= 1;
        Some(due.fault.clone())
    }
}

/// A request.
struct S3Request {
    method: String,
    /// The key of the object; empty for the bucket.
    key: String,
    query: BTreeMap<String, String>,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

/// An answer.
struct S3Answer {
    status: u16,
    headers: String,
    body: Vec<u8>,
}

fn serve(state: &ServerState, mut stream: TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some(request) = read_request(&mut reader) {
        let range = request.headers.get("range").cloned().unwrap_or_default();
        let is_copy = request.headers.contains_key("x-amz-copy-source");
        let method = if is_copy { "COPY" } else { &request.method };
        let shown = format!("{method} {} {range}", request.key);
        state.requests.lock().unwrap().push(shown.clone());
        let fault = state.fault_of(&shown);
        let answer = match &fault {
            Some(ServerFault::Answer(status, headers, body)) => S3Answer {
                status: *status,
                headers: (*headers).to_owned(),
                body: body.as_bytes().to_vec(),
            },
            _ => answer(state, &request),
        };
        let is_head = request.method == "HEAD";
        let head = format!(
            "HTTP/1.1 {} -\r\nContent-Length: {}\r\n{}\r\n",
            answer.status,
            answer.body.len(),
            answer.headers
        );
        let mut body = answer.body;
        if let Some(ServerFault::Cut(bytes)) = fault {
            body.truncate(bytes);
        }
        let mut sent = stream.write_all(head.as_bytes());
        if !is_head {
            sent = sent.and_then(|()| stream.write_all(&body));
        }
        if sent.is_err() || matches!(fault, Some(ServerFault::Cut(_))) {
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<S3Request> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .ok()
        .filter(|bytes| *bytes > 0)?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader
            .read_line(&mut line)
            .ok()
            .filter(|bytes| *bytes > 0)?;
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").map_or("0", String::as_str);
    let mut body = vec![0; length.parse().ok()?];
    reader.read_exact(&mut body).ok()?;
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let key = decoded(path.strip_prefix(&format!("/{BUCKET}"))?);
    let query = query.split('&').map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(name), decoded(value))
    });
    Some(S3Request {
        method,
        key: key.trim_start_matches('/').to_owned(),
        query: query.collect(),
        headers,
        body,
    })
}

/// A text of a URL without its escapes.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap(), rest.next().unwrap()];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}

fn answer(state: &ServerState, request: &S3Request) -> S3Answer {
    let mut objects = state.objects.lock().unwrap();
    let simple = |status| S3Answer {
        status,
        headers: String::new(),
        body: Vec::new(),
    };
    match (request.method.as_str(), request.key.is_empty()) {
        ("GET", true) => listing(&objects, &request.query),
        ("POST", true) => {
            let text = String::from_utf8_lossy(&request.body).into_owned();
            let keys = text.split("<Key>").skip(1);
            let keys = keys.map(|rest| rest.split_once("</Key>").unwrap().0);
            let mut deleted = String::new();
            for key in keys {
                objects.remove(key);
                deleted += &format!("<Deleted><Key>{key}</Key></Deleted>");
            }
            let body = format!("<DeleteResult>{deleted}</DeleteResult>").into_bytes();
            S3Answer {
                body,
                ..simple(200)
            }
        }
        ("PUT", false) => {
            let bytes = match request.headers.get("x-amz-copy-source") {
                None if request.headers.contains_key("if-none-match")
                    && objects.contains_key(&request.key) =>
                {
                    return simple(412);
                }
                None => request.body.clone().into(),
                Some(from) => {
                    let from = decoded(from);
                    let from = from.trim_start_matches('/').split_once('/').unwrap().1;
                    match objects.get(from) {
                        Some((bytes, _)) => Arc::clone(bytes),
                        None => return simple(404),
                    }
                }
            };
            objects.insert(request.key.clone(), (bytes, state.now()));
            S3Answer {
                headers: "ETag: \"e\"\r\n".to_owned(),
                body: match request.headers.contains_key("x-amz-copy-source") {
                    true => b"<CopyObjectResult><ETag>e</ETag></CopyObjectResult>".to_vec(),
                    false => Vec::new(),
                },
                ..simple(200)
            }
        }
        ("DELETE", false) => {
            objects.remove(&request.key);
            simple(204)
        }
        (_, _) => match objects.get(&request.key) {
            None => simple(404),
            Some((bytes, written)) => got(bytes, *written, request.headers.get("range")),
        },
    }
}

/// The bytes of an object, or a range of them.
fn got(bytes: &[u8], written: SystemTime, range: Option<&String>) -> S3Answer {
    let headers = format!("ETag: \"e\"\r\nLast-Modified: {}\r\n", http_date(written));
    let Some(range) = range else {
        return S3Answer {
            status: 200,
            headers,
            body: bytes.to_vec(),
        };
    };
    let (start, end) = range
        .strip_prefix("bytes=")
        .unwrap()
        .split_once('-')
        .unwrap();
    let start: usize = start.parse().unwrap();
    let end = end.parse::<usize>().map_or(bytes.len(), |last| last + 1);
    let part = bytes.get(start..end.min(bytes.len()));
    let Some(part) = part.filter(|part| !part.is_empty()) else {
        return S3Answer {
            status: 416,
            headers: String::new(),
            body: Vec::new(),
        };
    };
    let last = start + part.len() - 1;
    S3Answer {
        status: 206,
        headers: format!(
            "{headers}Content-Range: bytes {start}-{last}/{}\r\n",
            bytes.len()
        ),
        body: part.to_vec(),
    }
}

fn listing(objects: &ServerObjects, query: &BTreeMap<String, String>) -> S3Answer {
    let of = |name: &str| query.get(name).map_or("", String::as_str);
    let most: usize = of("max-keys").parse().unwrap_or(1000);
    let (prefix, after) = (of("prefix"), of("continuation-token"));
    let begin = if after > prefix { after } else { prefix };
    let mut from = objects
        .range(begin.to_owned()..)
        .take_while(|(key, _)| key.starts_with(prefix));
    let mut contents = String::new();
    for (key, (bytes, written)) in from.by_ref().take(most) {
        contents += &format!(
            "<Contents><Key>{key}</Key><Size>{}</Size><LastModified>{}</LastModified><ETag>\"e\"</ETag></Contents>",
            bytes.len(),
            iso_date(*written),
        );
    }
    if let Some((next, _)) = from.next() {
        contents += &format!("<NextContinuationToken>{next}</NextContinuationToken>");
    }
    S3Answer {
        status: 200,
        headers: "Content-Type: application/xml\r\n".to_owned(),
        body: format!("<ListBucketResult>{contents}</ListBucketResult>").into_bytes(),
    }
}

/// Days since 1970, year, month from 0, day of the month, and the time of day.
fn calendar(time: SystemTime) -> (u64, u64, usize, u64, String) {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap().as_secs();
    let days = seconds / 86_400;
    let (mut year, mut left) = (1970, days);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while left >= 365 + u64::from(is_leap(year)) {
        left -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [
        31,
        28 + u64::from(is_leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    while left >= lengths[month] {
        left -= lengths[month];
        month += 1;
    }
    let of_day = seconds % 86_400;
    let clock = format!(
        "{:02}:{:02}:{:02}",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60
    );
    (days, year, month, left + 1, clock)
}

fn http_date(time: SystemTime) -> String {
    let (days, year, month, day, clock) = calendar(time);
    let weekday =
        ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][usize::try_from(days % 7).unwrap()];
    let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    format!(
        "{weekday}, {day:02} {} {year} {clock} GMT",
        &months[month * 3..month * 3 + 3]
    )
}

fn iso_date(time: SystemTime) -> String {
    let (_, year, month, day, clock) = calendar(time);
    format!("{year}-{:02}-{day:02}T{clock}.000Z", month + 1)
}
