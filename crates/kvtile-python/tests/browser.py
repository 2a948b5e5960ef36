"""A headless Chromium with one page, through the DevTools protocol on a pipe: no driver, no package."""

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

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PROGRAM = next((path for path in map(shutil.which, NAMES) if path), None)
# A loaded machine starts a browser in many seconds.
WITHIN = 120.0


class Browser:
    """A page of a browser process. Counts the errors that the page prints and the exceptions that it does not catch."""

    def __init__(self, folder: Path) -> None:
        assert PROGRAM is not None
        its_input, self.output = os.pipe()
        self.input, its_output = os.pipe()
        # Chromium reads orders from descriptor 3 and writes answers to descriptor 4. Descriptors of this process may have
        # these numbers.
        script = f'exec 3<&{its_input} 4>&{its_output}; exec "$0" "$@"'
        options = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run", "--disable-gpu"]
        options += ["--disable-dev-shm-usage", "--disable-background-networking", "--disable-component-update"]
        # Chromium's sandbox refuses root.
        options += ["--no-sandbox"] if os.geteuid() == 0 else []
        self.log = (folder.parent / "chromium.log").open("wb")
        environment = {**os.environ, "HOME": str(folder.parent)}
        self.process = subprocess.Popen(
            ["bash", "-c", script, PROGRAM, *options, "about:blank"],
            pass_fds=(its_input, its_output), stdout=self.log, stderr=self.log, env=environment,
        )
        os.close(its_input)
        os.close(its_output)
        self.rest, self.number, self.errors, self.session = b"", 0, list[str](), ""
        [target] = [one for one in self.send("Target.getTargets")["targetInfos"] if one["type"] == "page"]
        self.session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Runs a command and returns its result."""
        self.number += 1
        order: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            order["sessionId"] = self.session
        os.write(self.output, json.dumps(order).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, (method, answer)
                result: dict[str, Any] = answer["result"]
                return result
            self.note(answer)

    def receive(self) -> dict[str, Any]:
        deadline = time.monotonic() + WITHIN
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.input], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.input, 1 << 20) if ready else b""
            assert piece, f"Chromium does not answer: {Path(self.log.name).read_text(errors='replace')[-2000:]}"
            self.rest += piece
        message, self.rest = self.rest.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer

    def note(self, event: dict[str, Any]) -> None:
        method, facts = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(facts["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert"):
            self.errors.append(json.dumps(facts["args"]))
        elif method == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(facts["entry"]))

    def resize(self, width: int, height: int, phone: bool) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=phone)

    def open(self, url: str) -> None:
        answer = self.send("Page.navigate", url=url)
        assert "errorText" not in answer, answer

    def value(self, expression: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        deadline = time.monotonic() + WITHIN
        while not self.value(expression):
            assert time.monotonic() < deadline, (expression, self.value("document.body.innerText"))
            time.sleep(0.05)

    def picture(self, file: Path) -> None:
        """Writes a picture of the whole page."""
        answer = self.send("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait(30)
        for descriptor in (self.input, self.output):
            os.close(descriptor)
        self.log.close()
