// Reads a field of the JSON, by its path. A test checks that every path that is read exists; the first letters of a
// variable name what it is: page, cache, identity, tier, store, route or queue.
function at(object, path) {
  for (const name of path.split(".")) object = object === undefined || object === null ? undefined : object[name];
  return object;
}

const KEEP = 300, MINUTE = 60;
let history = [];          // earlier pages, the oldest first
let answered = null;       // when the last answer came, by the browser's clock

// ---- numbers as text

function count(number) {
  if (number === undefined || number === null) return "–";
  if (number < 10 && number % 1) return number.toFixed(2);
  return Math.round(number).toLocaleString("en-US");
}

function bytes(number) {
  if (number === undefined || number === null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let unit = 0;
  while (number >= 1024 && unit + 1 < units.length) { number /= 1024; unit += 1; }
  const digits = unit === 0 || number >= 100 ? 0 : number >= 10 ? 1 : 2;
  return number.toFixed(digits) + " " + units[unit];
}

function percent(part, whole) {
  return whole > 0 ? (100 * part / whole).toFixed(1) + " %" : "–";
}

function time(seconds) {
  if (seconds === undefined || seconds === null) return "–";
  if (seconds < 1e-3) return (seconds * 1e6).toFixed(0) + " µs";
  if (seconds < 1) return (seconds * 1e3).toFixed(seconds < 1e-2 ? 2 : 1) + " ms";
  if (seconds < 120) return seconds.toFixed(1) + " s";
  if (seconds < 7200) return (seconds / 60).toFixed(0) + " min";
  return (seconds / 3600).toFixed(1) + " h";
}

const words = text => text.replaceAll("_", " ");
const sum = map => Object.values(map || {}).reduce((a, b) => a + b, 0);

// ---- elements; all text of the caches goes through textContent

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "style") for (const [rule, text] of Object.entries(value)) made.style.setProperty(rule, text);
    else made.setAttribute(key, value);
  }
  made.append(...children.filter(child => child !== null));
  return made;
}

const colour = index => "var(--c" + (index % 6) + ")";

function tile(title, value, under) {
  return element("div", {class: "tile"}, element("span", {class: "soft small"}, title), element("b", {}, value),
    element("span", {class: "soft small"}, under));
}

function panel(title, ...children) {
  return element("section", {class: "panel"}, element("h3", {}, title), ...children);
}

function bar(parts, whole) {
  const made = element("div", {class: "bar"});
  for (const [part, fill] of parts) {
    if (part > 0 && whole > 0) made.append(element("i", {style: {width: 100 * part / whole + "%", background: fill}}));
  }
  return made;
}

function table(head, rows) {
  const cells = (name, texts) => texts.map(text => element(name, {}, text));
  const body = rows.map(row => element("tr", {}, element("th", {}, row[0]), ...cells("td", row.slice(1))));
  return element("div", {class: "scroll"}, element("table", {},
    element("thead", {}, element("tr", {}, ...cells("th", head))), element("tbody", {}, ...body)));
}

function badge(text, good) {
  return element("span", {class: good ? "badge good" : "badge bad"}, text);
}

// ---- rates

// The same cache in an earlier page.
const cacheIn = (page, name) => at(page, "caches").find(cache => at(cache, "name") === name);

// The oldest page of the last minute that has this cache.
function minuteAgo(name) {
  const now = at(history[history.length - 1], "seconds");
  return history.find(page => now - at(page, "seconds") <= MINUTE && cacheIn(page, name));
}

// [seconds, value per second] of the last five minutes, for a counter of the cache.
function rates(name, counter) {
  const points = [];
  let before = null;
  for (const page of history) {
    const cache = cacheIn(page, name);
    if (!cache) { before = null; continue; }
    const now = [at(page, "seconds"), counter(cache)];
    if (before && now[0] > before[0]) points.push([now[0], Math.max(0, now[1] - before[1]) / (now[0] - before[0])]);
    before = now;
  }
  return points;
}

function perSecond(name, counter) {
  const page = minuteAgo(name), last = history[history.length - 1];
  const seconds = at(last, "seconds") - at(page, "seconds");
  return seconds > 0 ? Math.max(0, counter(cacheIn(last, name)) - counter(cacheIn(page, name))) / seconds : 0;
}

function curve(points, stroke, most) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 300 40");
  svg.setAttribute("preserveAspectRatio", "none");
  if (points.length > 1) {
    const end = points[points.length - 1][0];
    const high = Math.max(most || 0, ...points.map(point => point[1])) || 1;
    const line = points.map(([seconds, value]) =>
      (300 - (end - seconds) * 300 / KEEP).toFixed(1) + " " + (38 - 36 * value / high).toFixed(1)).join(" L ");
    const first = (300 - (end - points[0][0]) * 300 / KEEP).toFixed(1);
    for (const [path, style] of [["M " + line, "stroke:" + stroke],
      ["M " + first + " 40 L " + line + " L 300 40 Z", "fill:" + stroke]]) {
      const drawn = document.createElementNS(space, "path");
      drawn.setAttribute("d", path);
      drawn.style.cssText = style;
      if (path.endsWith("Z")) drawn.setAttribute("class", "under");
      svg.append(drawn);
    }
  }
  return svg;
}

// ---- parts of the page

function identityLine(cache) {
  const shown = at(cache, "identities").map(identity =>
    at(identity, "model") + " (" + at(identity, "revision") + "), " + at(identity, "page_size") + " tokens a block, identity "
    + at(identity, "fingerprint").slice(0, 8));
  const size = at(cache, "block_bytes");
  return [...new Set(shown)].join("; ") + (size ? ", blocks of " + bytes(size) : "");
}

function tiles(cache) {
  const name = at(cache, "name");
  const looked = at(cache, "stats.lookup_blocks"), hits = sum(at(cache, "stats.hits"));
  const hitsNow = perSecond(name, cache => sum(at(cache, "stats.hits")));
  const lookedNow = perSecond(name, cache => at(cache, "stats.lookup_blocks"));
  const moved = cache => at(cache, "stats.moves").reduce((all, route) => all + at(route, "bytes"), 0);
  return element("div", {class: "tiles"},
    tile("block hits", percent(hits, looked), percent(hitsNow, lookedNow) + " in the last minute"),
    tile("lookups", count(at(cache, "stats.lookups")),
      count(perSecond(name, cache => at(cache, "stats.lookups"))) + " a second"),
    tile("blocks looked up", count(looked), count(lookedNow) + " a second"),
    tile("bytes moved", bytes(moved(cache)), bytes(perSecond(name, moved)) + " a second"));
}

function tierState(tier) {
  const states = [];
  for (const [path, text] of [["health.reads_paused", "reads paused"], ["health.writes_paused", "writes paused"],
    ["health.syncs_paused", "syncs paused"], ["health.is_late", "late"]]) {
    if (at(tier, path)) states.push(badge(text, false));
  }
  return states.length ? states : [badge("working", true)];
}

function where(cache) {
  const size = at(cache, "block_bytes");
  const of = (map, tier) => (at(cache, map) || {})[at(tier, "tier")] || 0;
  const rows = at(cache, "tiers").map((tier, index) => {
    const present = at(tier, "present"), capacity = at(tier, "capacity");
    const inBytes = blocks => size ? " · " + bytes(blocks * size) : "";
    const held = count(present) + (capacity ? " of " + count(capacity) : "") + " blocks" + inBytes(present)
      + (capacity && size ? " of " + bytes(capacity * size) : "");
    const evicted = Object.entries(of("stats.evicted", tier) || {}).map(([why, blocks]) => count(blocks) + " " + words(why));
    const facts = [
      at(tier, "is_durable") ? "durable" : "not durable",
      at(tier, "is_shared") ? "shared: the blocks that this cache knows" : null,
      count(of("stats.stored", tier)) + " stored",
      count(of("stats.pinned", tier)) + " pinned",
      of("stats.left_out", tier) ? count(of("stats.left_out", tier)) + " left out" : null,
      evicted.length ? "left: " + evicted.join(", ") : null,
      of("stats.checked", tier) ? count(of("stats.checked", tier)) + " checked, "
        + count(of("stats.checksum_failures", tier)) + " damaged" : null,
      at(tier, "read_seconds") ? "a block is read in " + time(at(tier, "read_seconds")) : null,
    ].filter(fact => fact !== null);
    return element("div", {class: "row"},
      element("div", {class: "line"}, element("span", {}, at(tier, "tier") + " ", ...tierState(tier)), element("span", {}, held)),
      capacity ? bar([[present, colour(index)]], capacity) : null,
      element("div", {class: "soft small"}, facts.join(" · ")));
  });
  return panel("What is where", ...rows);
}

function hits(cache) {
  const name = at(cache, "name");
  const whole = at(cache, "stats.lookup_blocks");
  const page = minuteAgo(name), cacheThen = cacheIn(page, name);
  const tiers = at(cache, "tiers").map(tier => at(tier, "tier"));
  const parts = [];
  for (const [tier, blocks] of Object.entries(at(cache, "stats.hits"))) {
    parts.push(["hit: " + tier, blocks, (at(cacheThen, "stats.hits")[tier] || 0), colour(Math.max(0, tiers.indexOf(tier)))]);
  }
  const misses = Object.entries(at(cache, "stats.misses")).sort((a, b) => b[1] - a[1]);
  misses.forEach(([why, blocks], index) => {
    const fill = "color-mix(in srgb, var(--c5) " + Math.max(25, 80 - 18 * index) + "%, var(--track))";
    parts.push(["miss: " + words(why), blocks, (at(cacheThen, "stats.misses")[why] || 0), fill]);
  });
  const wholeThen = at(cacheThen, "stats.lookup_blocks");
  const rows = parts.map(([text, blocks, then, fill]) => [
    element("span", {}, element("i", {class: "key", style: {background: fill}}), text),
    count(blocks), percent(blocks, whole), percent(blocks - then, whole - wholeThen)]);
  const lost = Object.entries(at(cache, "stats.lost_hits")).map(([why, blocks]) => count(blocks) + " " + words(why));
  const looked = rates(name, cache => at(cache, "stats.lookup_blocks"));
  const found = rates(name, cache => sum(at(cache, "stats.hits")));
  const ratio = looked.map(([seconds, rate], index) => [seconds, rate > 0 ? found[index][1] / rate : 0]);
  return panel("Hits and misses of blocks",
    bar(parts.map(part => [part[1], part[3]]), whole),
    rows.length ? table(["", "blocks", "share", "last minute"], rows) : element("p", {class: "soft"}, "no lookups yet"),
    element("div", {class: "soft small"}, "share of hits, 0 to 100 %"), curve(ratio, "var(--c0)", 1),
    lost.length ? element("div", {class: "small bad"}, "found and not loaded: " + lost.join(", ")) : null);
}

function routes(cache) {
  const name = at(cache, "name");
  const rows = at(cache, "stats.moves").map((route, index) => {
    const isIt = one => at(one, "source") === at(route, "source") && at(one, "destination") === at(route, "destination");
    const of = (cache, path) => at(at(cache, "stats.moves").find(isIt), path) || 0;
    const bytesOf = cache => of(cache, "bytes");
    const cacheThen = cacheIn(minuteAgo(name), name);
    const since = path => at(route, path) - of(cacheThen, path);
    const done = since("moves") - since("failures");
    const latency = done > 0 ? since("nanoseconds") / done / 1e9 : null;
    const all = at(route, "moves") - at(route, "failures");
    const mean = all > 0 ? at(route, "nanoseconds") / all / 1e9 : null;
    return element("div", {class: "row"},
      element("div", {class: "line"},
        element("span", {}, at(route, "source") + " → " + at(route, "destination")),
        element("span", {}, bytes(perSecond(name, bytesOf)) + "/s")),
      curve(rates(name, bytesOf), colour(index)),
      element("div", {class: "soft small"}, bytes(at(route, "bytes")) + " · " + count(at(route, "blocks")) + " blocks · "
        + count(at(route, "moves")) + " transfers of " + time(mean) + " (last minute " + time(latency) + ")"
        + (at(route, "failures") ? " · " + count(at(route, "failures")) + " failed" : "")));
  });
  return panel("Bytes between tiers", ...(rows.length ? rows : [element("p", {class: "soft"}, "no transfers yet")]));
}

function shared(cache, tier) {
  const store = at(tier, "shared"), counters = at(store, "counters");
  const written = at(store, "counters.written_bytes"), back = at(store, "counters.read_bytes");
  const breaker = (text, state) => badge(text + ": breaker " + state, state === "closed");
  const shown = Object.entries(counters).filter(([, value]) => value > 0).map(([counter, value]) =>
    [words(counter), counter.includes("bytes") ? bytes(value) : count(value)]);
  return panel("Store of " + at(tier, "tier"),
    element("div", {class: "row"},
      element("div", {}, element("code", {}, at(store, "store"))),
      element("div", {}, breaker("reads", at(store, "reads")), " ", breaker("writes", at(store, "writes"))),
      element("div", {class: "soft small"}, "bundles of " + at(store, "bundle_blocks").join(", ") + " blocks · at most "
        + count(at(store, "calls_max")) + " calls at a time")),
    element("div", {class: "row"},
      element("div", {class: "line"}, element("span", {}, "read back over written"),
        element("span", {}, (written > 0 ? (back / written).toFixed(2) : "–") + " · " + bytes(back) + " of " + bytes(written))),
      bar([[Math.min(back, written), "var(--c1)"]], written)),
    shown.length ? table(["bundles, blocks and bytes", "since opening"], shown)
      : element("p", {class: "soft"}, "no calls yet"));
}

function queues(cache) {
  const rows = at(cache, "stats.queues").map(queue => [at(queue, "queue"),
    count(at(queue, "depth")) + " of " + count(at(queue, "capacity")), count(at(queue, "offered")), count(at(queue, "refused"))]);
  return panel("Queues of jobs", table(["", "waiting", "offered", "refused"], rows));
}

function section(cache) {
  const stores = at(cache, "tiers").filter(tier => at(tier, "shared")).map(tier => shared(cache, tier));
  return element("article", {}, element("h2", {}, at(cache, "name")),
    element("p", {class: "soft"}, identityLine(cache)), tiles(cache),
    element("div", {class: "sides"}, element("div", {}, where(cache), routes(cache)),
      element("div", {}, hits(cache), ...stores, queues(cache))));
}

// ---- refreshes

function show(page) {
  const before = history[history.length - 1];
  // A server that was started again counts from 0.
  if (before && at(page, "seconds") < at(before, "seconds")) history = [];
  history.push(page);
  history = history.filter(one => at(page, "seconds") - at(one, "seconds") <= KEEP);
  if (getSelection().type === "Range") return;
  const sections = at(page, "caches").map(section);
  document.getElementById("caches").replaceChildren(
    ...(sections.length ? sections : [element("p", {}, "No cache is open.")]));
}

function state(text, bad) {
  const line = document.getElementById("state");
  line.textContent = text;
  line.className = bad ? "bad" : "soft";
}

async function refresh() {
  try {
    const response = await fetch("/stats.json", {cache: "no-store", signal: AbortSignal.timeout(5000)});
    if (!response.ok) throw new Error("status " + response.status);
    const page = await response.json();
    answered = performance.now();
    show(page);
    const caches = at(page, "caches").length;
    state("live · " + caches + (caches === 1 ? " cache" : " caches") + " · kvtile " + at(page, "kvtile") + " · serving for "
      + time(at(page, "seconds")), false);
  } catch (error) {
    const since = answered === null ? "" : " for " + time((performance.now() - answered) / 1000);
    state("no answer" + since + ": the numbers below are old (" + error.message + ")", true);
  }
  setTimeout(refresh, 1000);
}

refresh();
