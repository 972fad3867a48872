// The page of the service. All that comes from the API is written as text, never as markup.

const API = "/api/v1";
const POLL = 1000; // milliseconds between two looks at a running job
const LOOK = 10000; // and at the status, for what others do
const PAGE = 50;
const at = (id) => document.getElementById(id);
let after = 0, next = null, shown = null, watched = null, newest = null, working = false;

class Refused extends Error {
  constructor(status, sentence) { super(sentence); this.status = status; }
}

// calls

async function call(path, { method = "GET", body, type = "application/json" } = {}) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem("token") || ""}` };
  if (body !== undefined) headers["Content-Type"] = type;
  let answer;
  try {
    answer = await fetch(API + path, { method, headers, body });
  } catch {
    throw new Refused(0, "the service does not answer; is it running?");
  }
  if (answer.ok) return answer;
  const said = await answer.json().then((found) => found.error, () => `the service answered ${answer.status}.`);
  if (answer.status === 401) ask();
  throw new Refused(answer.status, said);
}

const get = async (path) => (await call(path)).json();
const post = async (path, value) =>
  (await call(path, { method: "POST", body: value === undefined ? undefined : JSON.stringify(value) })).json();
const query = (values) => {
  const kept = Object.entries(values).filter(([, value]) => value !== "" && value !== null && value !== 0);
  return kept.length ? `?${new URLSearchParams(kept)}` : "";
};

// Runs an action of a button or form: the control is off meanwhile, and an error is said.
function doing(action) {
  return async (event) => {
    event.preventDefault();
    const control = event.submitter || event.currentTarget;
    control.disabled = true;
    say("error", "");
    try {
      await action(event.target);
    } catch (error) {
      fail(error);
    } finally {
      control.disabled = false;
      settle();
    }
  };
}

function settle() {
  for (const id of ["plan", "fulfil", "resume"]) at(id).disabled = working;
  at("more").disabled = next === null;
}

function fail(error) {
  if (!(error instanceof Refused)) throw error;
  say("error", error.message);
}

// writing

function make(name, text, look) {
  const element = document.createElement(name);
  if (text !== undefined && text !== null) element.textContent = text;
  if (look) element.className = look;
  return element;
}

function say(id, text) {
  at(id).textContent = text;
  at(id).hidden = text === "";
}

function fill(id, children) {
  at(id).replaceChildren(...children);
}

const fact = (name, value) => {
  const pair = make("div");
  pair.append(make("dt", name), make("dd", value));
  return pair;
};
const minute = (time) => (time ? time.slice(0, 16).replace("T", " ") : "");

// token

function ask() {
  sessionStorage.removeItem("token");
  at("desk").hidden = true;
  at("login").hidden = false;
}

async function enter() {
  await status();
  at("login").hidden = true;
  at("desk").hidden = false;
  await list();
}

// status

async function status() {
  const now = await get("/status");
  const counts = Object.entries(now.counts).filter(([state, count]) => count || state === "received");
  fill("counts", [
    ...counts.map(([state, count]) => fact(state, count)),
    fact("model in force", `${now.active.id.slice(0, 12)} (${now.active.method}, ${minute(now.active.made_at)})`),
  ]);
  say("advice", `Advice: ${now.advice.word}`);
  fill("reasons", now.advice.reasons.map((reason) => make("li", reason)));
  const left = now.unfinished.map((one) => `fulfilment ${one.id} of ${one.requests.length} requests, after “${one.step}”`);
  say("left", left.length ? `Interrupted: ${left.join("; ")}. The next job goes on with it first.` : "");
  at("resume").hidden = !left.length;
  if (now.job) show(now.job);
}

// the job

function show(job) {
  const running = job.ended_at === null;
  at("job").hidden = false;
  at("cancel").hidden = !running;
  newest = job.id;
  working = running;
  settle();
  const failed = job.outcome.some((one) => one.state === "failed") || job.state === "failed";
  say("job-state", `Job ${job.state}.`);
  at("job-state").className = running ? "" : failed ? "bad" : "good";
  const step = job.progress;
  at("job-what").textContent = running ? (step ? `${step.what}: ${step.done} of ${step.total}` : "preparing") : job.message;
  at("job-bar").hidden = !running;
  if (step) { at("job-bar").max = step.total; at("job-bar").value = step.done; } else at("job-bar").removeAttribute("value");
  fill("job-outcome", job.outcome.map((one) => make("li", one.sentence, one.state === "failed" ? "bad" : "")));
  if (!running && job.state === "done" && !job.outcome.length) fill("job-outcome", [make("li", "Nothing was left to do.")]);
  at("job-lines").textContent = job.lines.join("\n");
  if (running && watched !== job.id) watch(job.id);
}

async function watch(id) {
  watched = id;
  try {
    for (;;) {
      await new Promise((done) => setTimeout(done, POLL));
      const job = await get(`/jobs/${id}`);
      show(job);
      if (job.ended_at !== null) break;
    }
  } catch (error) {
    fail(error);
  } finally {
    watched = null;
  }
  await refresh();
}

async function refresh() {
  try {
    await status();
    await list();
    if (shown !== null) await detail(shown);
  } catch (error) {
    fail(error);
  }
}

// the list

async function list() {
  const found = await get(`/requests${query({ state: at("state").value, batch: at("batch").value, after, limit: PAGE })}`);
  next = found.next;
  settle();
  at("none").hidden = found.requests.length > 0;
  fill("rows", found.requests.map((one) => {
    const row = make("tr"), head = make("th"), button = make("button", String(one.id));
    button.type = "button";
    button.setAttribute("aria-label", `Request ${one.id}`);
    button.addEventListener("click", doing(async () => { await detail(one.id); at("detail").focus(); }));
    head.scope = "row";
    head.append(button);
    row.append(
      head, make("td", one.state, { fulfilled: "good", failed: "bad" }[one.state]), make("td", minute(one.received_at)),
      make("td", one.batch), make("td", one.ticket), make("td", one.samples, "number"), make("td", one.message),
    );
    return row;
  }));
}

// one request

async function detail(id) {
  const { request, fulfilment: work, events } = await get(`/requests/${id}`);
  if (shown !== id) fill("findings", []);
  shown = id;
  at("detail-title").textContent = `Request ${id}: ${request.state}`;
  const known = {
    reason: request.reason, ticket: request.ticket, batch: request.batch, "entered by": request.by,
    samples: request.samples, message: request.message, "subject (hash)": request.subject,
    verdict: work && work.verdict, method: work && work.method && `${work.method} (${work.exact ? "exact" : "approximate"})`,
    "model before": work && work.parent.slice(0, 12), "model after": work && work.version && work.version.slice(0, 12),
  };
  fill("facts", Object.entries(known).filter(([, value]) => value || value === 0).map(([name, value]) => fact(name, value)));
  fill("events", events.map((event) => make("li", `${minute(event.at)}  ${event.kind}, ${event.by}`)));
  const proven = Boolean(work && work.case);
  for (const name of ["case-html", "case-pdf", "case-json", "verify"]) at(name).hidden = !proven;
  at("rollback").hidden = request.state !== "fulfilled";
  at("retry").hidden = !["failed", "rolled back"].includes(request.state);
  at("detail").hidden = false;
}

// The token cannot be part of a link, so the file is fetched, and opened or saved from memory.
async function file(format) {
  const id = shown;
  const blob = await (await call(`/requests/${id}/case?format=${format}`)).blob();
  const link = make("a");
  link.href = URL.createObjectURL(blob);
  if (format === "html") link.target = "_blank";
  else link.download = `case-of-request-${id}.${format}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

async function verify() {
  const found = await get(`/requests/${shown}/verify`);
  fill("findings", [
    make("li", found.ok ? "All checks hold." : "NOT in order: do not rely on this case file.", found.ok ? "good" : "bad"),
    ...found.findings.map((one) => make("li", `${one.ok ? "ok" : "NOT"}: ${one.sentence}`, one.ok ? "" : "bad")),
  ]);
}

function sure(question) {
  const dialog = at("confirm");
  at("question").textContent = question;
  return new Promise((answer) => {
    let yes = false;
    at("yes").onclick = () => { yes = true; dialog.close(); };
    at("no").onclick = () => dialog.close();
    dialog.onclose = () => answer(yes);
    dialog.showModal();
  });
}

async function change(what, question) {
  const id = shown;
  if (!(await sure(question))) return;
  await post(`/requests/${id}/${what}`);
  await refresh();
}

// what the controls do

async function start(resume) {
  say("plan-lines", "");
  const { job } = await post("/fulfilments", resume ? { resume } : { batch: at("work-batch").value || null });
  show(await get(`/jobs/${job}`));
}

const actions = {
  plan: async () => {
    say("plan-lines", "Planning …");
    try {
      const { plan } = await get(`/plan${query({ batch: at("work-batch").value })}`);
      say("plan-lines", plan ? plan.lines.join("\n") : "Nothing to do: no request waits.");
    } catch (error) {
      say("plan-lines", "");
      throw error;
    }
  },
  fulfil: () => start(false),
  resume: () => start(true),
  cancel: async () => show(await post(`/jobs/${newest}/cancel`)),
  first: async () => { after = 0; await list(); },
  more: async () => { after = next; await list(); },
  "case-html": () => file("html"),
  "case-pdf": () => file("pdf"),
  "case-json": () => file("json"),
  verify,
  retry: () => change("retry", `Take request ${shown} in again?`),
  rollback: () => change(
    "rollback", `Undo the fulfilment of request ${shown}? The model before it is put back in force, for its whole batch.`,
  ),
};
for (const [id, action] of Object.entries(actions)) at(id).addEventListener("click", doing(action));
for (const id of ["state", "batch"]) at(id).addEventListener("change", doing(async () => { after = 0; await list(); }));

at("login").addEventListener("submit", doing(async (form) => {
  sessionStorage.setItem("token", form.elements.token.value.trim());
  form.reset();
  await enter();
}));
at("add").addEventListener("submit", doing(async (form) => {
  const value = Object.fromEntries(new FormData(form));
  const { request, new: fresh } = await post("/requests", { ...value, ticket: value.ticket || null });
  form.reset();
  say("added", `Request ${request.id}: ${request.state}${fresh ? "" : " (was known already)"}.`);
  await refresh();
}));
at("import").addEventListener("submit", doing(async (form) => {
  const answer = await call("/requests/import", { method: "POST", body: form.elements.file.files[0], type: "text/csv" });
  const { new: fresh, known } = await answer.json();
  form.reset();
  say("added", `${fresh} new requests, ${known} known already.`);
  await refresh();
}));
setInterval(() => {
  if (!at("desk").hidden && watched === null && !document.hidden) status().catch(fail);
}, LOOK);
if (sessionStorage.getItem("token")) enter().catch(fail);
else ask();
