"""Look at a built site in Chromium: look.py SITE PICTURES

Every page is opened at the width of a phone and of a desk. At neither may it scroll sideways, nor may anything of its
text be cut off: what is wider stands in a box that scrolls. PICTURES gets one of each page at each width.
"""

import base64
import json
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

WIDTHS = {360: 740, 1280: 900}  # and heights
HIGHEST = 6000  # of a picture
CHROMIUM = ["chromium", "--headless=new", "--no-sandbox", "--hide-scrollbars", "--remote-debugging-pipe"]

# How wide the text is, and whatever it stands in: one of these may well hide that, or scroll.
WIDEST = """
(function widest(box) {
    return box ? Math.max(box.scrollWidth, widest(box.parentElement)) : 0;
})(document.querySelector("article"))
"""

# What reaches beyond the window, and into no box that scrolls.
CUT_OFF = """
[...document.querySelectorAll("article *")].filter(one => {
    if (one.getBoundingClientRect().right <= innerWidth + 1) return false;
    for (let box = one; box.tagName != "ARTICLE"; box = box.parentElement)
        if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return false;
    return true;
}).map(one => one.outerHTML.slice(0, 100))
"""


class Browser:
    """Chromium's DevTools protocol over a pair of pipes: JSON, each message ended by a NUL."""

    def __init__(self, to, of):
        self._to, self._of = to, of
        self._asked = 0
        self._session = {}
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.ask("Page.enable")

    def ask(self, method, **parameters):
        self._asked += 1
        self._say({"id": self._asked, "method": method, "params": parameters, **self._session})
        return self._await(lambda said: said.get("id") == self._asked)["result"]

    def open(self, path):
        self.ask("Page.navigate", url=path.as_uri())
        self._await(lambda said: said.get("method") == "Page.loadEventFired")

    def evaluate(self, script):
        return self.ask("Runtime.evaluate", expression=script, returnByValue=True)["result"]["value"]

    def _say(self, message):
        self._to.write(json.dumps(message).encode() + b"\0")
        self._to.flush()

    def _await(self, wanted):
        while True:
            said = bytearray()
            while (byte := self._of.read(1)) != b"\0":
                if not byte:
                    raise EOFError("Chromium has ended")
                said += byte
            message = json.loads(said)
            if wanted(message):
                return message


@contextmanager
def browser():
    """Its fds 3 and 4 are the pipes."""
    (there, to), (of, here) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory() as profile:
        shell = ["sh", "-c", f'exec "$@" 3<&{there} 4>&{here}', "sh"]
        command = [*shell, *CHROMIUM, f"--user-data-dir={profile}"]
        with subprocess.Popen(command, pass_fds=[there, here], stderr=subprocess.DEVNULL) as process:
            os.close(there)
            os.close(here)
            try:
                with open(to, "wb") as into, open(of, "rb") as out:
                    yield Browser(into, out)
            finally:
                process.kill()


def problems(chromium, site, pictures):
    for width, height in WIDTHS.items():
        size = {"width": width, "height": height}
        chromium.ask("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=width < 600)
        for path in sorted(site.rglob("*.html")):
            name = path.relative_to(site).with_suffix("")
            chromium.open(path)
            wide, high = chromium.evaluate(WIDEST), chromium.evaluate("document.documentElement.scrollHeight")
            if wide > width:
                yield f"{name}: {wide} wide at {width}"
            for element in chromium.evaluate(CUT_OFF):
                yield f"{name}: cut off at {width}: {element}"
            clip = {"x": 0, "y": 0, "width": width, "height": min(high, HIGHEST), "scale": 1}
            taken = chromium.ask("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
            picture = pictures / f"{str(name).replace('/', '-')}-{width}.png"
            picture.write_bytes(base64.b64decode(taken["data"]))


if __name__ == "__main__":
    site, pictures = (Path(word).resolve() for word in sys.argv[1:])
    pictures.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        found = list(problems(chromium, site, pictures))
    print(*found, f"looked at {pictures}", sep="\n")
    sys.exit(bool(found))
