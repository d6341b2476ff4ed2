addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(details => details.open = true));
document.querySelectorAll(".picture").forEach(figure => {
  const canvas = figure.querySelector(".canvas"), svg = canvas.querySelector("svg");
  figure.querySelectorAll("button").forEach(button => button.addEventListener("click", () => {
    const zoom = button.dataset.zoom, fit = zoom === "fit", full = svg.viewBox.baseVal.width * 4 / 3;
    const x = (canvas.scrollLeft + canvas.clientWidth / 2) / canvas.scrollWidth;
    const y = (canvas.scrollTop + canvas.clientHeight / 2) / canvas.scrollHeight;
    const width = zoom === "full" ? full : svg.getBoundingClientRect().width * zoom;
    svg.style.maxWidth = svg.style.maxHeight = fit ? "" : "none";
    svg.style.width = fit ? "" : width + "px";
    canvas.scrollTo(x * canvas.scrollWidth - canvas.clientWidth / 2, y * canvas.scrollHeight - canvas.clientHeight / 2);
  }));
});
