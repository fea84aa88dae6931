
// Asks for the state of the run every two seconds, and for its report only when there is a new one.
const live = document.getElementById("live"), report = document.getElementById("report");
const lost = document.getElementById("lost");

async function get(name) {
  const answer = await fetch(name, { cache: "no-store", signal: AbortSignal.timeout(10000) });
  if (!answer.ok) throw new Error(answer.status);
  return [await answer.text(), answer.headers.get("Report-Version")];
}

async function refresh() {
  try {
    const [now, version] = await get("live");
    live.innerHTML = now;
    if (version !== report.dataset.version) {
      const [html, newer] = await get("report"), [x, y] = [scrollX, scrollY];
      const open = [...report.querySelectorAll("details[open]")].map((it) => it.id);
      report.innerHTML = html;
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      scrollTo(x, y);
      report.dataset.version = newer;
    }
    lost.hidden = true;
    if (live.querySelector("[data-ended]")) return;
  } catch {
    lost.hidden = false;
  }
  setTimeout(refresh, 2000);
}
setTimeout(refresh, 2000);
