# SPDX-License-Identifier: Apache-2.0
"""Headless Chromium for tests, spoken to by its DevTools protocol through two pipes: no library, no port, no
network.

Messages are consecutive JSON objects, each ended by a NUL byte, on the descriptors 3 (to it) and 4
(from it).
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

#: Measures the page that is open: what a reader would notice.
MEASURE = """(() => {
  const page = document.documentElement, seen = [...document.querySelectorAll('svg, img')];
  const scrolls = n => { for (let p = n.parentElement; p; p = p.parentElement)
    if (getComputedStyle(p).overflowX !== 'visible') return true; return false; };
  return {
    scroll: page.scrollWidth, client: page.clientWidth, pictures: seen.length,
    missing: seen.filter(s => s.getBoundingClientRect().height < 50 ||
                         (s.tagName === 'IMG' && !s.naturalWidth)).length,
    images: [...document.querySelectorAll('svg image')].filter(
      i => !(i.href.baseVal || '').startsWith('data:image/png')).length,
    beyond: [...document.querySelectorAll('body *')].filter(
      n => !n.closest('svg') && !scrolls(n) && n.getBoundingClientRect().right > page.clientWidth + 1).length,
    paper: getComputedStyle(document.body).backgroundColor, ink: getComputedStyle(document.body).color,
    loaded: performance.getEntriesByType('resource').map(e => e.name).filter(n => !n.startsWith('data:')),
    unnamed: seen.filter(s => !s.getAttribute('aria-labelledby')).length };
})()"""


class Browser:
    """A Chromium with one page; use it as a context manager. `problems` has what its console complained
    of."""

    def __init__(self, profile: Path) -> None:
        self.problems: list[str] = []
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()

        # In the child the pipes must have the numbers 3 and 4; a shell puts them there.
        command = [
            str(CHROMIUM),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--mute-audio",
            "--disable-dev-shm-usage",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        shell = f'exec "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(to_read, to_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(to_read)
        os.close(to_write)
        self._data, self._number, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._session = ""
        self.call("Browser.close")
        self._process.wait(30)
        os.close(self._to)
        os.close(self._from)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer; raises RuntimeError for an error, TimeoutError after two minutes."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def show(self, page: Path, width: int, scheme: str, height: int = 900) -> dict[str, Any]:
        """Open a page at a width in pixels under a colour scheme (light or dark), and measure it."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=page.resolve().as_uri())
        limit = time.monotonic() + 60
        while (
            self._evaluate("document.readyState + ' ' + location.href")
            != f"complete {page.resolve().as_uri()}"
        ):
            if time.monotonic() > limit:
                raise TimeoutError(f"{page} is not loaded after 60 s")
            time.sleep(0.05)
        return self._evaluate(MEASURE)

    def picture(self, out: Path) -> None:
        """The whole page as a PNG."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)["data"]
        out.write_bytes(base64.b64decode(data))

    def print_pdf(self, out: Path) -> None:
        """The page as it is printed, on A4."""
        data = self.call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)[
            "data"
        ]
        out.write_bytes(base64.b64decode(data))

    def _evaluate(self, expression: str) -> Any:
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def _next(self) -> dict[str, Any]:
        """The next message; what the console says on the way is kept."""
        while b"\0" not in self._data:
            if not select.select([self._from], [], [], 120)[0]:
                raise TimeoutError("Chromium says nothing for two minutes")
            more = os.read(self._from, 1 << 20)
            if not more:
                raise RuntimeError("Chromium has ended")
            self._data += more
        text, _, self._data = self._data.partition(b"\0")
        message = json.loads(text)
        match message.get("method"):
            case "Runtime.exceptionThrown" | "Network.loadingFailed":
                self.problems.append(json.dumps(message["params"])[:400])
            case "Runtime.consoleAPICalled" if message["params"]["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(message["params"])[:400])
            case "Log.entryAdded" if message["params"]["entry"]["level"] in ("error", "warning"):
                self.problems.append(message["params"]["entry"]["text"])
        return message
