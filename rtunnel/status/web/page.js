"use strict";

// Asks for /status every second and shows it. What the server, the visitors and the
// targets wrote is put in as text only, never as HTML.

const PERIOD_MS = 1000;
const GIVE_UP_MS = 5000;
const SAMPLES = 60;
const WIDTH = 120;
const HEIGHT = 24;

// By connection and listener: the bytes of the last answer, and the rates since.
const histories = new Map();
let askedBefore = 0;

function element(name, options, ...children) {
  const made = document.createElement(name);
  const { text, ...attributes } = options || {};
  for (const [key, value] of Object.entries(attributes)) {
    if (value) made.setAttribute(key, value);
  }
  if (text !== undefined) made.textContent = text;
  made.append(...children);
  return made;
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (count >= 1000 && unit < units.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${units[unit]}`;
}

function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [d, h, m, s] = [
    Math.floor(whole / 86400), Math.floor(whole / 3600) % 24,
    Math.floor(whole / 60) % 60, whole % 60,
  ];
  if (d) return `${d} d ${h} h`;
  if (h) return `${h} h ${m} min`;
  return m ? `${m} min ${s} s` : `${s} s`;
}

function since(text) {
  return text ? duration((Date.now() - Date.parse(text)) / 1000) : "-";
}

function roundTrip(seconds, best) {
  if (seconds === null) return "not measured";
  const [now, least] = [seconds, best ?? seconds].map((each) => {
    const ms = each * 1000;
    return ms < 10 ? ms.toFixed(1) : String(Math.round(ms));
  });
  return now === least ? `${now} ms` : `${now} ms, ${least} at best`;
}

function remember(key, row, seconds) {
  let history = histories.get(key);
  if (!history) {
    history = { in: [], out: [] };
    histories.set(key, history);
  } else if (seconds > 0) {
    for (const [way, now, before] of [
      ["in", row.bytes_in, history.bytesIn], ["out", row.bytes_out, history.bytesOut],
    ]) {
      // Fewer than before: the listener was made anew.
      history[way].push(Math.max(0, now - before) / seconds);
      if (history[way].length > SAMPLES) history[way].shift();
    }
  }
  history.bytesIn = row.bytes_in;
  history.bytesOut = row.bytes_out;
  return history;
}

function sparkline(rates, way, label) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const most = Math.max(1, ...rates);
  const step = WIDTH / (SAMPLES - 1);
  const first = WIDTH - (rates.length - 1) * step;
  const line = document.createElementNS(space, "polyline");
  line.setAttribute("class", way);
  line.setAttribute("points", rates.map((rate, i) => {
    const y = HEIGHT - 1 - (rate / most) * (HEIGHT - 2);
    return `${(first + i * step).toFixed(1)},${y.toFixed(1)}`;
  }).join(" "));
  svg.append(line);
  return svg;
}

function moved(total, rates, way) {
  const rate = `${bytes(rates.at(-1) || 0)}/s`;
  return element("td", { class: "number" },
    element("span", { text: bytes(total) }),
    element("span", { class: "rate faint", text: rate }),
    sparkline(rates, way, `${way}: ${rate}`));
}

function listenerRow(row, history) {
  const good = row.state === "listening";
  const place = element("td", {}, element("span", { text: `${row.bind} → ${row.target}` }));
  if (row.name !== row.bind) {
    place.append(element("span", { class: "name faint", text: row.name }));
  }
  const made = element("tr", { class: "listener", "data-state": row.state },
    place,
    element("td", { class: good ? "good" : "bad", text: row.state }),
    element("td", { class: "number connections",
      text: `${row.connections_open} / ${row.connections_total}` }),
    moved(row.bytes_in, history.in, "in"),
    moved(row.bytes_out, history.out, "out"),
    element("td", { class: row.stalled ? "number stalled warn" : "number stalled",
      text: row.stalled ? `${row.stalled} stalled` : "-" }),
    element("td", { class: "number",
      text: row.refused || row.errors ? `${row.refused} / ${row.errors}` : "-" }),
    element("td", { class: "error", text: row.last_error || "-" }));
  return made;
}

function connectionCard(connection, seconds) {
  const good = connection.state === "connected";
  const facts = [
    ["server", connection.destination || "-"],
    ["round trip", roundTrip(connection.rtt_s, connection.rtt_best_s)],
    ["cipher", connection.cipher || "-"],
    ["backend", connection.backend || "-"],
    ["rekeys", connection.rekeys],
    ["reconnects", connection.reconnects],
    ["since", since(connection.since)],
  ];
  const list = element("dl");
  for (const [name, value] of facts) {
    list.append(element("div", {},
      element("dt", { text: name }), element("dd", { text: String(value) })));
  }
  const card = element("section", { class: "connection", "data-state": connection.state },
    element("div", { class: "head" },
      element("h2", { text: connection.name }),
      element("span", { class: `badge ${good ? "good" : "bad"}`, text: connection.state })),
    list);
  if (connection.last_error) {
    card.append(element("div", { class: "bad", text: connection.last_error }));
  }
  const table = element("table", {}, element("thead", {}, element("tr", {},
    ...[["bind → target"], ["state"], ["open / total", "number"], ["in", "number"],
      ["out", "number"], ["window", "number"], ["refused / errors", "number"],
      ["last error"]].map(([text, kind]) => element("th", { text, class: kind })))));
  const body = element("tbody");
  connection.listeners.forEach((row, number) => {
    const key = JSON.stringify([connection.name, row.name, number]);
    body.append(listenerRow(row, remember(key, row, seconds)));
  });
  table.append(body);
  card.append(connection.listeners.length
    ? table : element("div", { class: "faint", text: "no listeners" }));
  return card;
}

function show(status) {
  const now = performance.now();
  const seconds = askedBefore ? (now - askedBefore) / 1000 : 0;
  askedBefore = now;
  const ready = document.getElementById("ready");
  ready.textContent = status.ready ? "ready" : "not ready";
  ready.className = `badge ${status.ready ? "good" : "bad"}`;
  document.title = `${status.ready ? "" : "(not ready) "}rtunnel ${status.kind}`;
  document.getElementById("process").textContent =
    `${status.kind}, version ${status.version}, process ${status.pid}, `
    + `up for ${since(status.started)}`;
  document.getElementById("trouble").textContent = "";
  const cards = status.connections.map((each) => connectionCard(each, seconds));
  const main = document.getElementById("connections");
  // What somebody has marked to copy stays as it is.
  if (!document.getSelection().isCollapsed) return;
  main.replaceChildren(...(cards.length
    ? cards : [element("section", { class: "faint", text: "no connections" })]));
}

async function ask() {
  try {
    const answer = await fetch("/status", { signal: AbortSignal.timeout(GIVE_UP_MS) });
    if (!answer.ok) throw new Error(`it says ${answer.status}`);
    show(await answer.json());
  } catch (error) {
    const ready = document.getElementById("ready");
    ready.textContent = "no answer";
    ready.className = "badge bad";
    document.getElementById("trouble").textContent =
      `The process does not answer: ${error.message}. What is below is old.`;
  }
  setTimeout(ask, PERIOD_MS);
}

ask();
