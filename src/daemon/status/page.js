setInterval(async () => {
  // Nobody looks, or somebody has marked a text to copy it: leave the page alone.
  if (document.hidden || !getSelection().isCollapsed) return;
  try {
    const reply = await fetch(location.href, { cache: "no-store", signal: AbortSignal.timeout(4000) });
    if (!reply.ok) throw new Error(reply.status);
    const page = new DOMParser().parseFromString(await reply.text(), "text/html");
    document.getElementById("page").replaceWith(page.getElementById("page"));
    document.querySelector("link[rel=icon]").href = page.querySelector("link[rel=icon]").getAttribute("href");
    document.title = page.title;
  } catch {
    document.getElementById("lost").hidden = false;
    document.getElementById("page").classList.add("stale");
    document.title = "? istio-hsm-ca";
  }
}, 5000);
