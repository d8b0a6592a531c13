// Draws the page from the JSON beside it. Text from models and data only ever goes through textContent.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("payload").textContent);
  const SVG = document.getElementById("drawing").namespaceURI;
  const { methods, metric, axes, metrics } = data;
  const hidden = new Set();
  let showSeeds = true;
  let axis = axes[0];
  let shown = metrics[0];
  let range = "whole";
  const byId = (id) => document.getElementById(id);
  const colour = (method) => `c${methods.indexOf(method) % 8}`;

  // ---- elements ----------------------------------------------------------------------------------------------------
  function node(parent, name, attributes = {}, text) {
    const made = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }
  function element(parent, name, className = "", text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    parent.append(made);
    return made;
  }
  function canvas(host, height, label) {
    host.replaceChildren();
    const width = Math.max(260, Math.round(host.clientWidth));
    const svg = node(host, "svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label });
    return { svg, width, height };
  }
  function blank(host, text) {
    host.replaceChildren();
    element(host, "p", "blank", text);
  }
  const ruler = document.createElement("canvas").getContext("2d");
  function widthOf(text, font = "13px") {
    ruler.font = `${font} ${getComputedStyle(document.body).fontFamily}`;
    return ruler.measureText(text).width;
  }
  const at = (value) => Math.round(value * 10) / 10;

  // ---- numbers -----------------------------------------------------------------------------------------------------
  const minus = (text) => text.replace("-", "−");
  const fixed = (value, digits = metric.digits) => minus(Number(value.toFixed(digits)) === 0 ? (0).toFixed(digits) : value.toFixed(digits));
  const signed = (value) => (Number(value.toFixed(metric.digits)) > 0 ? "+" : "") + fixed(value);
  const scientific = (value, digits = 1) => value.toExponential(digits).replace(/e\+?/, "e");
  const times = (value) => {
    if (value >= 1e6 || (value > 0 && value < 0.01)) return scientific(value);
    return value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 2 : value < 100 ? 1 : 0 });
  };
  // A value of a log metric takes two or three figures, wherever its point stands.
  function figures(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size < 1e-3 || size >= 1e5) return minus(scientific(value).replace("e-", "e−"));
    const digits = Math.max(0, 2 - Math.floor(Math.log10(size)));
    return minus(value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
  }
  const told = (value) => (metric.log ? figures(value) : fixed(value)); // a value of the deciding metric
  const interval = (e, say = told) => (e.low === null ? "" : ` [${say(e.low)}, ${say(e.high)}]`);
  const digitsOf = (step) => [0, 1, 2, 3, 4, 5, 6, 7, 8].find((d) => Math.abs(step * 10 ** d - Math.round(step * 10 ** d)) < 1e-6 * step * 10 ** d) ?? 8;
  function short(value, step) {
    const size = Math.max(Math.abs(value), step || 0);
    for (const [unit, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
      if (size < unit) continue;
      if (value === 0) return "0";
      const digits = step ? digitsOf(step / unit) : Math.abs(value) / unit < 10 ? 2 : 1;
      return minus((value / unit).toFixed(Math.min(4, digits)).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "")) + letter;
    }
    if (value === 0) return "0";
    const digits = step ? digitsOf(step) : Math.max(0, 3 - Math.ceil(Math.log10(size + 1e-12)));
    return minus(value.toFixed(Math.min(8, digits)));
  }
  function ticks(low, high, wanted) {
    const raw = (high - low) / Math.max(1, wanted);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999);
    const values = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) values.push(k * step);
    return { values, step };
  }
  function domain(values, pad = 0.06, bounded = false, log = false) {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const natural = !log && low >= 0;
    if (!(high > low)) [low, high] = [low - (Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)];
    if (natural) low = Math.max(0, low);
    const room = (high - low) * pad;
    const [under, over] = [low - room, high + room];
    if (log) return [under, over];
    // A share cannot leave [0, 1], a length or a distance cannot be negative: nor does its axis.
    return [low >= 0 ? Math.max(0, under) : under, bounded && high <= 1 ? Math.min(1, over) : over];
  }
  // Values of a log metric are drawn and averaged as their decimal logarithm; `floor` stands for what is not above it.
  const logged = (value) => Math.log10(Math.max(value, data.floor));
  const put = (item, value) => (item.log ? logged(value) : value);
  const taken = (item, value) => (item.log ? 10 ** value : value);
  const raised = (digits) => [...String(digits)].map((d) => "⁰¹²³⁴⁵⁶⁷⁸⁹"["0123456789".indexOf(d)] ?? "⁻").join("");
  function power(exponent) {
    if (exponent < -3 || exponent > 4) return `10${raised(exponent)}`;
    return exponent < 0 ? (10 ** exponent).toFixed(-exponent) : (10 ** exponent).toLocaleString("en");
  }
  // Ticks between two decimal logarithms: powers of ten, or within a decade or two also 2 and 5, or an even scale.
  function logTicks(low, high, wanted) {
    const decades = high - low;
    if (decades < 0.7) {
      const { values, step } = ticks(10 ** low, 10 ** high, wanted);
      return { values: values.filter((v) => v > 0).map(Math.log10), text: (v) => short(10 ** v, step), minor: [] };
    }
    const stride = Math.max(1, Math.ceil(decades / Math.max(2, wanted)));
    const between = (list) => list.filter((v) => v >= low - 1e-9 && v <= high + 1e-9);
    const first = Math.floor(low);
    const powers = Array.from({ length: Math.ceil(high) - first + 1 }, (_, k) => first + k);
    const some = powers.filter((k) => k % stride === 0);
    const minor = stride === 1 && decades <= 4 ? between(powers.flatMap((k) => [2, 3, 4, 5, 6, 7, 8, 9].map((m) => k + Math.log10(m)))) : [];
    if (decades < 1.8 && wanted >= 3) {
      const values = between(powers.flatMap((k) => [1, 2, 5].map((m) => k + Math.log10(m))));
      return { values, text: (v) => figures(Number((10 ** v).toPrecision(1))).replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, ""), minor };
    }
    return { values: between(some), text: power, minor };
  }
  const scale = ([low, high], from, to) => (value) => from + ((value - low) / (high - low)) * (to - from);
  const unitOf = (item) => (item.unit ? `${item.label} (${item.unit})` : item.label);

  function evenTicks(low, high, wanted) {
    let { values, step } = ticks(low, high, wanted);
    for (let more = 1; values.length < 2 && more < 4; more++) ({ values, step } = ticks(low, high, wanted + more)); // one number is no scale
    return { values, text: (v) => short(v, step), minor: [] };
  }
  function frame(host, { height, x, y, xTitle, yTitle, label, right = 16, left = 52, log = false, small = false }) {
    const { svg, width } = canvas(host, height, label);
    const [top, bottom] = small ? [24, 24] : [30, 46];
    const sy = scale(y, height - bottom, top);
    const up = (log ? logTicks : evenTicks)(...y, Math.max(small ? 2 : 3, Math.floor((height - top - bottom) / (small ? 30 : 46))));
    left = Math.max(left, ...up.values.map((value) => widthOf(up.text(value), "12px") + 12));
    const sx = scale(x, left, width - right);
    const across = ticks(...x, Math.max(2, Math.floor((width - left - right) / (width < 640 ? 62 : 90))));
    for (const value of up.minor) node(svg, "line", { class: "grid minor", x1: left, x2: width - right, y1: at(sy(value)), y2: at(sy(value)) });
    for (const value of up.values) {
      node(svg, "line", { class: "grid", x1: left, x2: width - right, y1: at(sy(value)), y2: at(sy(value)) });
      node(svg, "text", { x: left - 8, y: at(sy(value)) + 4, "text-anchor": "end" }, up.text(value));
    }
    for (const value of across.values) {
      node(svg, "text", { x: at(sx(value)), y: height - bottom + 18, "text-anchor": "middle" }, short(value, across.step));
    }
    node(svg, "line", { class: "base", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom });
    if (yTitle) node(svg, "text", { class: "title y-title", x: 0, y: 13 }, yTitle);
    if (xTitle) node(svg, "text", { class: "title x-title", x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, xTitle);
    return { svg, width, height, sx, sy, top, bottom: height - bottom, left, right: width - right };
  }
  function line(points, sx, sy) {
    return points.map(([x, y], i) => `${i ? "L" : "M"}${at(sx(x))} ${at(sy(y))}`).join("");
  }
  // Shape and colour both tell a method, so neither has to be seen alone.
  function mark(parent, method, x, y, size, className = "mark") {
    const s = size;
    const shape = [
      `M${-s} 0A${s} ${s} 0 1 1 ${s} 0A${s} ${s} 0 1 1 ${-s} 0Z`,
      `M${-s * 0.9} ${-s * 0.9}H${s * 0.9}V${s * 0.9}H${-s * 0.9}Z`,
      `M0 ${-s * 1.25}L${s * 1.25} 0L0 ${s * 1.25}L${-s * 1.25} 0Z`,
      `M0 ${-s * 1.15}L${s * 1.1} ${s * 0.85}H${-s * 1.1}Z`,
    ][methods.indexOf(method) % 4];
    return node(parent, "path", { class: `${className} ${colour(method)}`, d: shape, transform: `translate(${at(x)} ${at(y)})` });
  }

  // Labels that would lie on each other move apart, in order, and stay between `top` and `bottom`.
  function spread(labels, bottom, step = 16) {
    labels.sort((a, b) => a.place - b.place);
    for (let i = 1; i < labels.length; i++) labels[i].place = Math.max(labels[i].place, labels[i - 1].place + step);
    for (let i = labels.length - 1; i >= 0; i--) {
      labels[i].place = Math.min(labels[i].place, i === labels.length - 1 ? bottom : labels[i + 1].place - step);
    }
    return labels;
  }
  // Lines that an axis over `values` shows: those within it, and others as long as the results keep a third of the axis.
  function linesWithin(values) {
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const room = high - low || Math.abs(high) || 1;
    return metric.lines.filter((l) => {
      const place = put(metric, l.value);
      if (Math.max(high, place) - Math.min(low, place) > 3 * room) return false;
      [low, high] = [Math.min(low, place), Math.max(high, place)];
      return true;
    });
  }

  // ---- series ------------------------------------------------------------------------------------------------------
  function points(run, metricKey, axisKey) {
    const block = run.curves.find((b) => metricKey in b.y);
    if (!block) return [];
    const log = metrics.some((m) => m.key === metricKey && m.log);
    const result = [];
    block.x[axisKey].forEach((x, i) => {
      const y = block.y[metricKey][i];
      if (x === null || y === null || (result.length && x <= result[result.length - 1][0])) return;
      result.push([x, log ? logged(y) : y]);
    });
    return result;
  }
  function interpolate(curve, x) {
    let high = curve.findIndex((p) => p[0] >= x);
    if (high < 0) high = curve.length - 1;
    if (high === 0) return curve[0][1];
    const [[x0, y0], [x1, y1]] = [curve[high - 1], curve[high]];
    return y0 + ((y1 - y0) * Math.min(1, (x - x0) / (x1 - x0)));
  }
  // Mean over finished seeds, on a grid that lies within the range of all of them: nothing is extrapolated.
  function mean(curves) {
    if (curves.length < 2 || curves.some((c) => c.length < 2)) return [];
    const low = Math.max(...curves.map((c) => c[0][0]));
    const high = Math.min(...curves.map((c) => c[c.length - 1][0]));
    if (!(high > low)) return [];
    const same = curves.every((c) => c.length === curves[0].length && c.every((p, i) => p[0] === curves[0][i][0]));
    const count = Math.min(90, Math.max(...curves.map((c) => c.length)));
    const grid = same ? curves[0].map((p) => p[0]) : Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));
    return grid.map((x) => {
      const values = curves.map((c) => interpolate(c, x));
      const centre = values.reduce((a, b) => a + b, 0) / values.length;
      const t = values.length >= data.least_seeds_for_band ? data.t[values.length] : null;
      if (t === null || t === undefined) return { x, y: centre, low: null, high: null };
      const variance = values.reduce((a, b) => a + (b - centre) ** 2, 0) / (values.length - 1);
      const half = t * Math.sqrt(variance / values.length);
      return { x, y: centre, low: centre - half, high: centre + half };
    });
  }
  function gather(metricKey, axisKey) {
    return methods.filter((m) => !hidden.has(m)).map((method) => {
      const runs = data.runs.filter((r) => r.method === method)
        .map((run) => ({ run, curve: points(run, metricKey, axisKey) })).filter((r) => r.curve.length);
      const whole = runs.filter((r) => r.run.status === "finished");
      return { method, runs, mean: mean(whole.map((r) => r.curve)), n: whole.length };
    }).filter((m) => m.runs.length);
  }

  // ---- learning curves ---------------------------------------------------------------------------------------------
  function drawCurves() {
    const host = byId("curves-chart");
    const series = gather(shown.key, axis.key);
    if (!series.length) {
      blank(host, hidden.size ? "No method with this metric is switched on." : "Nothing was logged to draw.");
      byId("curves-caption").textContent = "";
      return;
    }
    const alone = (m) => m.mean.length === 0;
    const reach = (from) => series.flatMap((m) => [
      ...(showSeeds || alone(m) ? m.runs.flatMap((r) => r.curve.filter((p) => p[0] >= from).map((p) => p[1])) : []),
      ...m.mean.filter((p) => p.x >= from).flatMap((p) => (p.low === null ? [p.y] : [p.low, p.high])),
    ]);
    const xs = series.flatMap((m) => m.runs.flatMap((r) => [r.curve[0][0], r.curve[r.curve.length - 1][0]]));
    const half = Math.max(...xs) / 2;
    const ys = range === "end" && reach(half).length ? reach(half) : reach(-Infinity);
    const lines = shown.key === metric.key ? linesWithin(ys) : [];
    const unseen = shown.key === metric.key ? metric.lines.filter((l) => !lines.includes(l)) : [];
    const lineText = (l) => `${l.name} ${minus(l.text)}`;
    const wide = host.clientWidth >= 720;
    const longest = Math.max(series.length > 1 ? Math.max(...series.map((m) => widthOf(m.method, "600 13px"))) : 0, ...lines.map((l) => widthOf(lineText(l), "12.5px")));
    const beside = wide && longest > 0 && longest < 200;
    const names = beside && series.length > 1;
    const area = frame(host, {
      height: wide ? 420 : 330,
      x: domain([0, ...xs], 0),
      y: domain([...ys, ...lines.map((l) => put(metric, l.value))], 0.05, shown.unit.startsWith("share"), shown.log),
      xTitle: unitOf(axis),
      yTitle: unitOf(shown),
      right: beside ? longest + 26 : 14,
      log: shown.log,
      label: `${shown.label} by ${axis.label.toLowerCase()}: ${series.map((m) => m.method).join(", ")}${lines.length ? `; lines: ${lines.map(lineText).join(", ")}` : ""}`,
    });
    const { svg, sx, sy } = area;
    node(node(svg, "clipPath", { id: "curves-clip" }), "rect", { x: area.left, y: area.top - 8, width: area.right - area.left + 8, height: area.bottom - area.top + 8 });
    for (const l of lines) {
      const y = at(sy(put(metric, l.value)));
      node(svg, "line", { class: `line${l.target ? " target" : ""}`, x1: area.left, x2: area.right, y1: y, y2: y, "data-line": l.name });
    }
    for (const m of series) {
      const group = node(svg, "g", { class: `series ${colour(m.method)}`, "data-method": m.method, ...(range === "end" ? { "clip-path": "url(#curves-clip)" } : {}) });
      if (m.mean.length && m.mean[0].low !== null) {
        const edge = [...m.mean.map((p) => [p.x, p.high]), ...m.mean.map((p) => [p.x, p.low]).reverse()];
        node(group, "path", { class: "band", d: `${line(edge, sx, sy)}Z` });
      }
      const sparse = m.n < data.least_seeds_for_band && m.runs.every((r) => r.curve.length <= 24);
      if (showSeeds || alone(m)) {
        for (const { run, curve } of m.runs) {
          const lost = run.status !== "finished";
          const single = alone(m) && m.runs.length === 1;
          node(group, "path", { class: single ? "mean" : `seed${lost ? " lost" : ""}`, d: line(curve, sx, sy) });
          if (sparse) {
            for (const [x, y] of curve) node(group, "circle", { class: "dot", cx: at(sx(x)), cy: at(sy(y)), r: 2.2 });
          }
          if (lost) {
            const [x, y] = curve[curve.length - 1].map((v, i) => at(i ? sy(v) : sx(v)));
            node(group, "path", { class: "cross", d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8` });
          }
        }
      }
      if (m.mean.length) node(group, "path", { class: "mean", d: line(m.mean.map((p) => [p.x, p.y]), sx, sy) });
    }
    const ends = series.map((m) => {
      const longestRun = m.runs.reduce((a, b) => (a.curve.length >= b.curve.length ? a : b)).curve;
      const last = m.mean.length ? m.mean[m.mean.length - 1] : { x: longestRun[longestRun.length - 1][0], y: longestRun[longestRun.length - 1][1] };
      return { method: m.method, x: sx(last.x), y: sy(last.y), place: sy(last.y) };
    });
    const labels = lines.map((l) => ({ line: l, place: sy(put(metric, l.value)) }));
    spread([...(names ? ends : []), ...(beside ? labels : [])], area.bottom);
    for (const end of ends) {
      mark(svg, end.method, end.x, end.y, 4.5);
      if (names) node(svg, "text", { class: `own ${colour(end.method)}`, x: at(end.x) + 12, y: at(end.place) + 4 }, end.method);
    }
    if (!beside) spread(labels, area.bottom, 15);
    for (const { line: l, place } of labels) {
      const where = beside ? { x: area.right + 12, y: at(place) + 4 } : { x: area.left + 6, y: at(place) - 5 };
      node(svg, "text", { class: `line-label${l.target ? " target" : ""}`, ...where }, lineText(l));
    }
    caption(series, unseen.map(lineText));
    hover(host, area, series);
  }
  function caption(series, unseen) {
    const banded = series.filter((m) => m.mean.length && m.mean[0].low !== null);
    const few = series.filter((m) => m.n < data.least_seeds_for_band && m.n > 0);
    const said = [];
    if (series.some((m) => m.mean.length)) said.push(`Thick line: ${shown.log ? "geometric mean" : "mean"} over finished seeds; thin lines: single seeds.`);
    if (banded.length) said.push(`Shaded: 95% t interval of the mean${shown.log ? "'s logarithm" : ""}.`);
    if (data.runs.length === 1) said.push("One run: one seed says nothing about the spread between seeds.");
    else if (few.length) said.push(`Fewer than ${data.least_seeds_for_band} finished seeds (${few.map((m) => `${m.method}: ${m.n}`).join(", ")}): no band.`);
    if (series.some((m) => m.runs.some((r) => r.run.status !== "finished"))) said.push("Dotted with a cross: a run that failed or stopped early, outside the mean.");
    if (range === "end") said.push("Drawn to the range of the second half of the budget: earlier values may lie beyond the edge.");
    if (unseen.length) said.push(`Too far away to be drawn: ${unseen.join(", ")}.`);
    byId("curves-caption").textContent = said.join(" ");
  }
  function hover(host, area, series) {
    const { svg, sx } = area;
    const single = (m) => (m.runs.length === 1 && !m.mean.length ? m.runs[0].curve.map(([x, y]) => ({ x, y, low: null })) : m.mean);
    const lines = series.map((m) => ({ method: m.method, curve: single(m) })).filter((m) => m.curve.length);
    if (!lines.length) return;
    const stops = [...new Set(lines.flatMap((m) => m.curve.map((p) => p.x)))].sort((a, b) => a - b);
    const hair = node(svg, "line", { class: "hair", y1: area.top, y2: area.bottom, visibility: "hidden" });
    const box = element(host, "div", "readout");
    box.hidden = true;
    box.setAttribute("aria-live", "polite");
    let current = stops.length - 1;
    function show(index) {
      current = Math.max(0, Math.min(stops.length - 1, index));
      const x = stops[current];
      hair.setAttribute("x1", at(sx(x)));
      hair.setAttribute("x2", at(sx(x)));
      hair.setAttribute("visibility", "visible");
      box.replaceChildren();
      element(box, "div", "at", `${axis.label} ${short(x)}${axis.unit ? ` ${axis.unit}` : ""}`);
      const said = (v) => (shown.key === metric.key ? told : shown.log ? figures : short)(taken(shown, v));
      const down = shown.key === metric.key && !metric.higher_is_better;
      const read = lines.filter((m) => x >= m.curve[0].x && x <= m.curve[m.curve.length - 1].x).map((m) => ({
        method: m.method,
        y: interpolate(m.curve.map((p) => [p.x, p.y]), x),
        low: m.curve[0].low === null ? null : interpolate(m.curve.map((p) => [p.x, p.low]), x),
        high: m.curve[0].low === null ? null : interpolate(m.curve.map((p) => [p.x, p.high]), x),
      })).sort((a, b) => (down ? a.y - b.y : b.y - a.y));
      for (const r of read) {
        const row = element(box, "div");
        element(row, "span", `block ${colour(r.method)}`);
        element(row, "span", "", r.method);
        element(row, "b", "", said(r.y));
        if (r.low !== null) element(row, "i", "", `[${said(r.low)}, ${said(r.high)}]`);
      }
      box.hidden = false;
      const factor = host.clientWidth / area.width;
      const onLeft = sx(x) > area.width / 2;
      box.style.left = onLeft ? "auto" : `${sx(x) * factor + 14}px`;
      box.style.right = onLeft ? `${(area.width - sx(x)) * factor + 14}px` : "auto";
    }
    function hide() {
      hair.setAttribute("visibility", "hidden");
      box.hidden = true;
    }
    function follow(event) {
      const x = ((event.clientX - host.getBoundingClientRect().left) / host.clientWidth) * area.width;
      let best = 0;
      stops.forEach((stop, i) => { if (Math.abs(sx(stop) - x) < Math.abs(sx(stops[best]) - x)) best = i; });
      show(best);
    }
    host.onpointermove = follow;
    host.onpointerdown = follow;
    host.onpointerleave = hide;
    host.onblur = hide;
    host.onkeydown = (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
      if (event.key === "Escape") hide();
      if (move === undefined) return;
      event.preventDefault();
      show(box.hidden && Math.abs(move) === 1 ? (move < 0 ? stops.length - 1 : 0) : current + move);
    };
  }

  // ---- rows of dots: final results and differences -----------------------------------------------------------------
  // `values` and `zero`, the value without a difference, are in the drawing's units: logarithms where `log`.
  function rows(host, { items, values, title, label, lead, text, pad = 0.08, zero = null, log = false, lines = [] }) {
    const wide = host.clientWidth >= 640;
    const gutter = wide ? Math.min(260, Math.max(...items.map((i) => widthOf(lead(i), "600 13px"))) + 20) : 8;
    const tail = wide ? Math.max(...items.map((i) => widthOf(text(i), "13px"))) + 20 : 8;
    const step = wide ? 50 : 64;
    const width = Math.max(260, Math.round(host.clientWidth));
    const has = zero !== null;
    let [low, high] = domain([...(has ? [zero] : []), ...values, ...lines.map((l) => put(metric, l.value))], pad, false, log || has);
    if (!has && !log && Math.min(...values) >= 0) low = Math.max(0, low);
    const sx = scale([low, high], gutter + 4, width - tail - 4);
    // The names of lines stand above the rows, on as many levels as they need to keep apart.
    const levels = [];
    const named = lines.map((l) => {
      const [x, breadth] = [sx(put(metric, l.value)), widthOf(`${l.name} ${l.text}`, "12.5px")];
      const middle = Math.min(Math.max(x, gutter + breadth / 2), width - breadth / 2);
      let level = levels.findIndex((taken) => taken.every(([from, to]) => middle + breadth / 2 + 12 < from || middle - breadth / 2 - 12 > to));
      if (level < 0) level = levels.push([]) - 1;
      levels[level].push([middle - breadth / 2, middle + breadth / 2]);
      return { line: l, x, middle, level };
    });
    const head = levels.length * 17;
    const height = head + items.length * step + 62;
    const { svg } = canvas(host, height, label);
    const bottom = head + items.length * step + 12;
    const across = (log ? logTicks : evenTicks)(low, high, Math.max(2, Math.floor((width - gutter - tail) / (wide ? 90 : 62))));
    for (const value of across.minor) node(svg, "line", { class: "grid minor", x1: at(sx(value)), x2: at(sx(value)), y1: head + 6, y2: bottom });
    for (const value of across.values) {
      const isZero = has && Math.abs(value - zero) < (high - low) * 1e-9;
      node(svg, "line", { class: isZero ? "zero" : "grid", x1: at(sx(value)), x2: at(sx(value)), y1: head + 6, y2: bottom });
      node(svg, "text", { x: at(sx(value)), y: bottom + 18, "text-anchor": "middle" }, across.text(isZero ? zero : value));
    }
    if (has && !across.values.some((v) => Math.abs(v - zero) < (high - low) * 1e-9)) node(svg, "line", { class: "zero", x1: at(sx(zero)), x2: at(sx(zero)), y1: head + 6, y2: bottom });
    for (const { line: l, x, middle, level } of named) {
      const y = head - level * 17;
      node(svg, "line", { class: `line${l.target ? " target" : ""}`, x1: at(x), x2: at(x), y1: y - 1, y2: bottom, "data-line": l.name });
      node(svg, "text", { class: `line-label${l.target ? " target" : ""}`, x: at(middle), y: y - 5, "text-anchor": "middle" }, `${l.name} ${minus(l.text)}`);
    }
    node(svg, "line", { class: "base", x1: gutter, x2: width - tail, y1: bottom, y2: bottom });
    node(svg, "text", { class: "title x-title", x: (gutter + width - tail) / 2, y: bottom + 40, "text-anchor": "middle" }, title);
    return items.map((item, i) => {
      const y = head + 12 + i * step + (wide ? step / 2 : step * 0.68);
      if (wide) {
        node(svg, "text", { class: "label", x: 0, y: y + 4 }, lead(item));
        node(svg, "text", { class: "value", x: width - tail + 16, y: y + 4 }, text(item));
      } else {
        node(svg, "text", { class: "label", x: 0, y: y - 21 }, lead(item));
        node(svg, "text", { class: "value", x: width, y: y - 21, "text-anchor": "end" }, text(item));
      }
      return { item, svg, sx, y };
    });
  }
  function drawFinal() {
    const host = byId("final-chart");
    const items = methods.map((method) => ({
      method,
      runs: data.runs.filter((r) => r.method === method && r.final !== null),
      estimate: data.final[method],
      starts: data.runs.filter((r) => r.method === method && r.start !== null).map((r) => r.start),
    })).filter((i) => i.runs.length);
    if (!items.length) {
      blank(host, "No run has finished.");
      return;
    }
    const barred = (i) => i.estimate.n >= data.least_seeds_for_band && i.estimate.low !== null;
    const log = metric.log;
    const u = (value) => put(metric, value);
    const start = (i) => (i.starts.length ? i.starts.map(u).reduce((a, b) => a + b, 0) / i.starts.length : null);
    const ends = items.flatMap((i) => [...i.runs.map((r) => u(r.final)), ...(barred(i) ? [u(i.estimate.low), u(i.estimate.high)] : [])]);
    const lines = linesWithin(ends);
    // A start that is far away would leave the results no room: it is told in words above, and not drawn here.
    const near = [...ends, ...lines.map((l) => u(l.value))];
    const begun = items.map(start).filter((v) => v !== null);
    const breadth = (list) => Math.max(...list) - Math.min(...list);
    const starts = begun.length > 0 && (!lines.length || breadth([...near, ...begun]) <= 4 * breadth(near));
    const values = starts ? [...ends, ...begun] : ends;
    const title = `Final ${metric.label}${metric.unit ? ` (${metric.unit})` : ""}`;
    const text = (i) => told(i.estimate.value) + (barred(i) ? interval(i.estimate) : "");
    for (const { item, svg, sx, y } of rows(host, { items, values, title, label: title, lead: (i) => i.method, text, log, lines })) {
      const group = node(svg, "g", { class: colour(item.method), "data-method": item.method });
      const from = start(item);
      if (starts && from !== null) node(group, "path", { class: "start", d: `M${at(sx(from))} ${y - 11}v24` });
      const alone = item.runs.length === 1;
      item.runs.forEach((run, k) => {
        const place = alone ? y : y + 9 + (((k * 2) % 3) - 1) * 1.6;
        const dot = mark(group, item.method, sx(u(run.final)), place, alone ? 5.6 : 3.4, alone ? "mark" : "dot");
        node(dot, "title", {}, `${item.method}, seed ${run.seed}: ${told(run.final)}`);
      });
      if (barred(item)) node(group, "line", { class: "bar", x1: at(sx(u(item.estimate.low))), x2: at(sx(u(item.estimate.high))), y1: y - 5, y2: y - 5 });
      if (!alone) mark(group, item.method, sx(u(item.estimate.value)), y - 5, 5.6);
    }
    const several = items.some((i) => i.runs.length > 1);
    const said = [several ? `Every small mark is one finished seed; the large mark is their ${log ? "geometric " : ""}mean.` : "One finished seed."];
    if (items.some(barred)) said.push(`Bar: 95% t interval${log ? " of the logarithm" : ""}.`);
    if (several && items.some((i) => !barred(i))) said.push(`No bar below ${data.least_seeds_for_band} seeds.`);
    if (starts) said.push("Grey tick: before training.");
    if (begun.length && !starts) said.push(`Before training: ${items.filter((i) => i.starts.length).map((i) => `${i.method} ${told(taken(metric, start(i)))}`).join(", ")}, too far away to be drawn.`);
    const unseen = metric.lines.filter((l) => !lines.includes(l));
    if (unseen.length) said.push(`Too far away to be drawn: ${unseen.map((l) => `${l.name} ${minus(l.text)}`).join(", ")}.`);
    byId("final-caption").textContent = said.join(" ");
  }
  function drawPairs() {
    const host = byId("pairs-chart");
    if (!host) return;
    const items = data.pairs;
    const log = metric.log; // then a pair is compared by the factor between its results
    const u = (value) => (log ? Math.log10(value) : value);
    const values = items.flatMap(({ difference: d }) => (d.low === null ? [u(d.value)] : [u(d.low), u(d.high)]));
    const title = log ? `Final ${metric.label}: first over second, as a factor` : `Difference in ${metric.label}${metric.unit ? ` (${metric.unit})` : ""}`;
    const lead = (p) => `${p.first} ${log ? "/" : "−"} ${p.second}`;
    const text = (p) => (log ? `${times(p.difference.value)}${interval(p.difference, times)}` : `${signed(p.difference.value)}${interval(p.difference)}`);
    for (const { item, svg, sx, y } of rows(host, { items, values, title, label: title, lead, text, zero: 0, log })) {
      const { value, low, high } = item.difference;
      const group = node(svg, "g", { class: item.shown ? colour(item.first) : "neutral" });
      if (low !== null) node(group, "path", { class: "bar", d: `M${at(sx(u(low)))} ${y}H${at(sx(u(high)))}M${at(sx(u(low)))} ${y - 5}v10M${at(sx(u(high)))} ${y - 5}v10` });
      node(group, "circle", { class: `mark${item.shown ? "" : " open"}`, cx: at(sx(u(value))), cy: y, r: 6 });
    }
  }

  // ---- diagnostics: small curves side by side ----------------------------------------------------------------------
  function drawPanels() {
    if (!data.panels.length) return;
    byId("panels").replaceChildren();
    for (const key of data.panels) {
      const item = metrics.find((m) => m.key === key);
      const series = gather(key, axis.key);
      if (!series.length) continue;
      const figure = element(byId("panels"), "figure");
      const head = element(figure, "figcaption");
      const button = element(head, "button", "", item.label);
      button.type = "button";
      button.title = `Draw ${item.label.toLowerCase()} large`;
      button.onclick = () => {
        byId("metric").value = key;
        byId("metric").onchange({ target: byId("metric") });
        byId("curves").scrollIntoView();
      };
      if (item.unit) element(head, "small", "", item.unit);
      const host = element(figure, "div", "chart");
      const drawn = (m) => (m.mean.length ? [m.mean.map((p) => [p.x, p.y])] : m.runs.map((r) => r.curve));
      const all = series.flatMap((m) => drawn(m).flat());
      const { svg, sx, sy } = frame(host, {
        height: 150,
        x: domain([0, ...all.map((p) => p[0])], 0),
        y: domain(all.map((p) => p[1]), 0.08, item.unit.startsWith("share"), item.log),
        left: 36,
        right: 10,
        log: item.log,
        small: true,
        label: `${item.label} by ${axis.label.toLowerCase()}: ${series.map((m) => m.method).join(", ")}`,
      });
      for (const m of series) {
        const group = node(svg, "g", { class: `series ${colour(m.method)}`, "data-method": m.method });
        for (const curve of drawn(m)) node(group, "path", { class: m.mean.length || m.runs.length === 1 ? "mean" : "seed", d: line(curve, sx, sy) });
      }
    }
    byId("panels-legend").replaceChildren();
    for (const method of methods.length > 1 ? methods.filter((m) => !hidden.has(m)) : []) {
      const item = element(byId("panels-legend"), "span", "item");
      swatch(item, method);
      element(item, "span", "", method);
    }
    byId("panels-caption").textContent = `Along ${axis.label.toLowerCase()}; means over finished seeds where there are two or more. A title draws its metric large.`;
  }

  // ---- cost --------------------------------------------------------------------------------------------------------
  const stageNames = data.stages;
  function drawCost() {
    const host = byId("cost-chart");
    if (!host) return;
    const total = (c) => stageNames.reduce((sum, s) => sum + (c.stages[s] || 0), 0);
    const largest = Math.max(...data.costs.map(total)) || 1;
    const wide = host.clientWidth >= 640;
    const gutter = wide ? Math.min(260, Math.max(...data.costs.map((c) => widthOf(c.method))) + 20) : 0;
    const step = wide ? 38 : 54;
    const bottom = data.costs.length * step + 6;
    const { svg, width } = canvas(host, bottom + 46, `Seconds by stage: ${data.costs.map((c) => `${c.method} ${short(total(c))}`).join(", ")}`);
    const sx = scale([0, largest], gutter, width - 64);
    const across = ticks(0, largest, Math.max(2, Math.floor((width - gutter) / (wide ? 110 : 70))));
    for (const value of across.values) {
      node(svg, "line", { class: "grid", x1: at(sx(value)), x2: at(sx(value)), y1: 4, y2: bottom });
      node(svg, "text", { x: at(sx(value)), y: bottom + 18, "text-anchor": value ? "middle" : "start" }, short(value, across.step));
    }
    node(svg, "text", { class: "title x-title", x: (gutter + width - 64) / 2, y: bottom + 40, "text-anchor": "middle" }, "Wall time of a run (s)");
    data.costs.forEach((cost, i) => {
      const top = 6 + i * step + (wide ? 6 : 22);
      node(svg, "text", { class: "label", x: 0, y: wide ? top + 17 : top - 6 }, cost.method);
      let from = 0;
      stageNames.forEach((stage, k) => {
        const seconds = cost.stages[stage] || 0;
        const breadth = sx(from + seconds) - sx(from);
        if (breadth > 0.3) {
          const bar = node(svg, "rect", { class: `block-bar s${k % 8}`, x: at(sx(from)), y: top, width: at(breadth), height: 26 });
          node(bar, "title", {}, `${cost.method}, ${stage}: ${short(seconds)} s`);
        }
        from += seconds;
      });
      node(svg, "text", { class: "value", x: at(sx(from)) + 8, y: top + 17 }, `${short(cost.total ?? from)} s`);
    });
  }

  // ---- KL ----------------------------------------------------------------------------------------------------------
  const bought = metrics.filter((m) => m.key === metric.key || m.key === "reward" || m.key === "eval/reward");
  const klKey = ["kl", "eval/kl"].find((key) => data.runs.some((r) => points(r, key, axis.key).length > 1));
  const hasKl = klKey !== undefined && bought.length > 0 && !metric.log;
  // The course of a run in the plane of two logged quantities, averaged until it can be seen.
  function path(run, xKey, key) {
    const over = axes.some((a) => a.key === "samples") ? "samples" : axis.key;
    const along = points(run, xKey, over);
    const value = points(run, key, over);
    if (along.length < 2 || value.length < 2) return [];
    const zero = xKey === klKey || xKey === "kl"; // the KL to the start is zero at the start
    const first = zero ? [[0, 0], ...(along[0][0] > 0 ? along : along.slice(1))] : along;
    const last = first[first.length - 1][0] + (first[first.length - 1][0] - first[first.length - 2][0]); // one interval further at most
    const size = Math.max(1, Math.ceil(value.length / 14));
    const average = (list) => list.reduce((a, b) => a + b, 0) / list.length;
    const result = [];
    for (let i = 0; i < value.length; i += size) {
      const part = value.slice(i, i + size).filter((p) => p[0] <= last && p[0] >= first[0][0]);
      if (part.length) result.push([average(part.map((p) => interpolate(first, p[0]))), average(part.map((p) => p[1]))]);
    }
    return result;
  }
  const onScale = { linear: (v) => v, sqrt: (v) => Math.sqrt(Math.max(0, v)), log: (v) => Math.log10(Math.max(v, 1e-12)) };
  const scaleWords = { linear: (t) => t, sqrt: (t) => `√ of ${t}`, log: (t) => `log10 of ${t}` };
  // Draws `against` over the quantity xKey, a path for each method; returns whether there was anything to draw.
  function drawPlane(host, { xKey, against, xScale = "linear", xTitle, fromZero, height, small = false }) {
    const put = onScale[xScale];
    const series = methods.filter((m) => !hidden.has(m)).map((method) => {
      const paths = data.runs.filter((r) => r.method === method && r.status === "finished")
        .map((r) => path(r, xKey, against.key).map(([x, y]) => [put(x), y])).filter((p) => p.length > 1);
      const length = Math.min(...paths.map((p) => p.length));
      const middle = paths.length > 1 ? Array.from({ length }, (_, i) => [0, 1].map((d) => paths.reduce((s, p) => s + p[i][d], 0) / paths.length)) : paths[0];
      return { method, paths, middle };
    }).filter((m) => m.paths.length);
    if (!series.length) return false;
    const all = series.flatMap((m) => (small ? m.middle : m.paths.flat()));
    const { svg, sx, sy } = frame(host, {
      height,
      x: domain([...(fromZero ? [0] : []), ...all.map((p) => p[0])], 0.04),
      y: domain(all.map((p) => p[1]), 0.06, against.unit.startsWith("share")),
      xTitle: scaleWords[xScale](xTitle),
      yTitle: small ? against.unit : unitOf(against),
      label: `${against.label} against ${xTitle}`,
    });
    for (const m of series) {
      const group = node(svg, "g", { class: `series ${colour(m.method)}`, "data-method": m.method });
      if (m.paths.length > 1 && !small) for (const p of m.paths) {
        node(group, "path", { class: "seed", d: line(p, sx, sy) });
        mark(group, m.method, sx(p[p.length - 1][0]), sy(p[p.length - 1][1]), 3.2, "dot");
      }
      node(group, "path", { class: "mean", d: line(m.middle, sx, sy) });
      mark(group, m.method, sx(m.middle[m.middle.length - 1][0]), sy(m.middle[m.middle.length - 1][1]), small ? 4.5 : 5.5);
    }
    return true;
  }
  function drawKl() {
    const host = byId("kl-chart");
    const against = bought.find((m) => m.key === byId("kl-metric").value) || bought[0];
    const drawn = drawPlane(host, {
      xKey: klKey,
      against,
      xTitle: "KL to the starting model (nats per sequence)",
      fromZero: true,
      height: host.clientWidth >= 640 ? 380 : 320,
    });
    if (!drawn) {
      blank(host, "No shown method has a finished run with a KL.");
      return;
    }
    byId("kl-caption").textContent = "From the start (left) to the end (mark): how far each method moved from its starting model, and what it gained. Thick: mean over finished seeds; thin: seeds. Higher at the same KL is the better bargain.";
    if (data.domain !== "language") byId("kl-caption").textContent = byId("kl-caption").textContent.replace("starting model", "starting policy");
    if (!metric.higher_is_better && against.key === metric.key) byId("kl-caption").textContent = byId("kl-caption").textContent.replace("Higher", "Lower");
  }

  // ---- what the task asks to be drawn ------------------------------------------------------------------------------
  function drawCharts() {
    data.charts.forEach((chart, i) => {
      const host = byId(`chart-${i}`);
      host.replaceChildren();
      const along = metrics.find((m) => m.key === chart.x);
      // all figures first: their number decides how wide each is
      const planes = chart.y.map((key) => metrics.find((m) => m.key === key)).filter((against) => along && against).map((against) => {
        const figure = element(host, "figure");
        element(element(figure, "figcaption"), "strong", "", against.label);
        return { figure, against, place: element(figure, "div", "chart") };
      });
      for (const { figure, against, place } of planes) {
        const xTitle = along.unit ? `${along.label} (${along.unit})` : along.label;
        if (!drawPlane(place, { xKey: chart.x, against, xScale: chart.x_scale, xTitle, fromZero: chart.x === "kl", height: 260, small: true })) figure.remove();
      }
      if (!host.childElementCount) element(host, "p", "note", "No shown method has a finished run that logged both quantities.");
      byId(`chart-${i}-legend`).replaceChildren();
      for (const method of methods.length > 1 ? methods.filter((m) => !hidden.has(m)) : []) {
        const item = element(byId(`chart-${i}-legend`), "span", "item");
        swatch(item, method);
        element(item, "span", "", method);
      }
    });
  }

  // ---- completions -------------------------------------------------------------------------------------------------
  const { prompts } = data.samples;
  let asked = 0;
  function drawSamples() {
    const { prompt, expected, answers } = prompts[asked];
    byId("prompt").value = String(asked);
    byId("previous").disabled = asked === 0;
    byId("following").disabled = asked === prompts.length - 1;
    byId("asked").replaceChildren();
    element(byId("asked"), "pre", "", prompt);
    if (expected) {
      const aside = element(byId("asked"), "p", "aside", "Expected: ");
      element(aside, "code", "", expected);
    }
    byId("answers").replaceChildren();
    for (const answer of answers) {
      const card = element(byId("answers"), "article", "card");
      const head = element(card, "header", colour(answer.method));
      element(head, "span", "block");
      element(head, "span", "", answer.method);
      const known = answer.right !== null;
      const said = [known ? (answer.right ? "✓ right" : "✗ wrong") : "", answer.score === null || (known && answer.score === Number(answer.right)) ? "" : `score ${short(answer.score)}`];
      element(head, "span", `badge ${known ? (answer.right ? "right" : "wrong") : ""}`, said.filter(Boolean).join(", "));
      element(card, "pre", "", answer.text === "" ? "(empty)" : answer.text);
      for (const [name, value] of answer.logged) {
        const aside = element(card, "p", "aside", `${name}: `);
        element(aside, "code", "", value);
      }
    }
    const which = [...new Set(answers.map((a) => (data.samples.one_seed ? `seed ${a.seed}, iteration ${a.iteration}` : `${a.method}: seed ${a.seed}, iteration ${a.iteration}`)))];
    byId("samples-caption").textContent = `From the last evaluation (${which.join("; ")}). Not chosen by their score.`;
  }

  // ---- data --------------------------------------------------------------------------------------------------------
  function cell(value) {
    if (value === null || value === undefined) return "";
    const text = typeof value === "string" && /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  }
  const csv = (table) => `${table.map((row) => row.map(cell).join(",")).join("\n")}\n`;
  function resultsCsv() {
    const head = ["method", "seed", "status", `start ${metric.key}`, `final ${metric.key}`, ...axes.map((a) => a.key)];
    return csv([head, ...data.runs.map((r) => [r.method, r.seed, r.status, r.start, r.final, ...axes.map((a) => r.spent[a.key])])]);
  }
  function curvesCsv() {
    const table = [["method", "seed", ...axes.map((a) => a.key), "metric", "value"]];
    for (const run of data.runs) for (const block of run.curves) for (const [key, values] of Object.entries(block.y)) {
      values.forEach((value, i) => { if (value !== null) table.push([run.method, run.seed, ...axes.map((a) => block.x[a.key][i]), key, value]); });
    }
    return csv(table);
  }
  function download(text, name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  // ---- controls ----------------------------------------------------------------------------------------------------
  function fill(select, items) {
    const groups = new Map();
    for (const item of items) {
      if (!groups.has(item.group)) {
        const group = element(select, "optgroup");
        group.label = item.group;
        groups.set(item.group, group);
      }
      element(groups.get(item.group), "option", "", item.label).value = item.key;
    }
  }
  function swatch(parent, method) {
    const svg = node(parent, "svg", { class: `swatch ${colour(method)}`, viewBox: "0 0 26 14", "aria-hidden": "true" });
    node(svg, "path", { class: "mean", d: "M2 7H24" });
    mark(svg, method, 13, 7, 4.2);
  }
  function controls() {
    fill(byId("metric"), metrics);
    const ranges = [["whole", "All values"], ["end", "Second half"]];
    const flat = gather(metric.key, axis.key).flatMap((m) => m.runs.map((r) => r.curve));
    if (metric.lines.some((l) => l.target) && !metric.log && flat.length) {
      // Where all that happens in the second half would be a strip at the edge, the drawing begins with that half.
      const half = Math.max(...flat.map((c) => c[c.length - 1][0])) / 2;
      const late = flat.flatMap((c) => c.filter((p) => p[0] >= half).map((p) => p[1]));
      const span = (list) => Math.max(...list) - Math.min(...list);
      const all = flat.flat().map((p) => p[1]);
      if (late.length > 1 && span([...late, ...linesWithin(late).map((l) => l.value)]) < 0.15 * span(all)) range = "end";
    }
    for (const [key, name] of ranges) {
      const button = element(byId("range"), "button", "", name);
      button.type = "button";
      button.dataset.range = key;
      button.setAttribute("aria-pressed", String(key === range));
      button.onclick = () => {
        range = key;
        for (const other of byId("range").children) other.setAttribute("aria-pressed", String(other === button));
        drawCurves();
      };
    }
    byId("metric").onchange = (event) => {
      shown = metrics.find((m) => m.key === event.target.value);
      drawCurves();
    };
    for (const item of axes) {
      const button = element(byId("axes"), "button", "", item.label);
      button.type = "button";
      button.dataset.axis = item.key;
      button.setAttribute("aria-pressed", String(item === axis));
      button.onclick = () => {
        axis = item;
        for (const other of byId("axes").children) other.setAttribute("aria-pressed", String(other === button));
        drawCurves();
        drawPanels();
      };
    }
    for (const method of methods) {
      const button = element(byId("legend"), "button");
      button.type = "button";
      button.dataset.method = method;
      button.setAttribute("aria-pressed", "true");
      button.title = `Show or hide ${method}`;
      swatch(button, method);
      element(button, "span", "", method);
      button.onclick = () => {
        if (!hidden.delete(method)) hidden.add(method);
        button.setAttribute("aria-pressed", String(!hidden.has(method)));
        drawCurves();
        drawPanels();
        drawCharts();
        if (hasKl) drawKl();
      };
    }
    if (data.runs.length > methods.length) {
      const label = element(byId("legend"), "label", "seeds");
      const box = element(label, "input");
      box.type = "checkbox";
      box.id = "show-seeds";
      box.checked = true;
      label.append("single seeds");
      box.onchange = () => {
        showSeeds = box.checked;
        drawCurves();
      };
    }
    if (byId("stages")) stageNames.forEach((stage, k) => {
      const item = element(byId("stages"), "span", "item");
      element(item, "span", `block s${k % 8}`);
      element(item, "span", "", stage);
    });
    if (hasKl) {
      byId("kl").hidden = false;
      fill(byId("kl-metric"), bought);
      byId("kl-metric").onchange = drawKl;
    }
    if (prompts.length) {
      byId("samples").hidden = false;
      prompts.forEach((entry, i) => {
        const first = entry.prompt.replace(/\s+/g, " ").trim();
        element(byId("prompt"), "option", "", `${i + 1} of ${prompts.length}: ${first.length > 70 ? `${first.slice(0, 70)}…` : first}`).value = String(i);
      });
      byId("prompt").onchange = (event) => { asked = Number(event.target.value); drawSamples(); };
      byId("previous").onclick = () => { asked -= 1; drawSamples(); };
      byId("following").onclick = () => { asked += 1; drawSamples(); };
      drawSamples();
    }
    byId("results-csv").onclick = () => download(resultsCsv(), "results.csv");
    byId("curves-csv").onclick = () => download(curvesCsv(), "curves.csv");
  }

  let last = 0;
  function drawAll() {
    last = document.documentElement.clientWidth;
    drawCurves();
    drawFinal();
    drawPairs();
    drawPanels();
    drawCost();
    if (hasKl) drawKl();
    drawCharts();
  }
  controls();
  drawAll();
  addEventListener("resize", () => {
    if (document.documentElement.clientWidth !== last) requestAnimationFrame(drawAll);
  });
})();
