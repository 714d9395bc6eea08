"""Take pictures of the page at /ui/, to be looked at: each view, both themes, a phone, a projector.

Usage: screenshots.py FOLDER [WORD]
It takes those whose names hold WORD, on a demonstration of its own; `picture.png` is docs/page.png.
"""

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from browser import Browser

ORCHMGMT = str(Path(sys.executable).with_name("orchmgmt"))
WARM_UP = 60  # s until the factory has left its traces
SEEN = 12  # s until a timeline has seen something end

PHONE, DESK, PROJECTOR = (390, 844), (1380, 900), (1920, 1080)
CREATE = """
const form = document.querySelector('.create');
form.instance.value = document.querySelector('td .instance').closest('tr')
  .querySelector('input').getAttribute('aria-label').replace('Select ', '');
form.owner.value = 'NightSetback';
form.requestSubmit();
"""
PICTURES = {
    "picture": ("view=timeline&span=120", DESK, "light", ""),
    **{
        f"{view}-{theme}{name}": (f"view={view}", size, theme, script)
        for view, script in (
            ("locks", CREATE),
            ("timeline", ""),
            ("history", "document.querySelectorAll('.open')[3].click()"),
        )
        for theme in ("light", "dark")
        for name, size in (("", DESK), ("-phone", PHONE))
    },
    "locks-projector": ("view=locks&large=1", PROJECTOR, "light", ""),
    "who": ("view=locks", DESK, "light", "document.querySelector('#who').click()"),
    "remove": ("view=locks", DESK, "dark", """
        document.querySelectorAll('.remove:not([aria-disabled])')[0].click()"""),
    "curl": ("view=history", DESK, "dark", "document.querySelector('.tools button').click()"),
}  # fmt: skip


def main(folder: Path, word: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    demo = subprocess.Popen([ORCHMGMT, "demo", "--port", "0"], stdout=subprocess.PIPE, text=True)
    browser = Browser()
    try:
        assert demo.stdout is not None
        browser.reset(demo.stdout.readline().split()[-1].rstrip("/"))
        time.sleep(WARM_UP)
        for name, (query, (width, height), theme, script) in PICTURES.items():
            if word not in name:
                continue
            browser.size(width, height, mobile=width < 500)
            browser.theme(theme)
            browser.open(query)
            time.sleep(SEEN * 3 if name == "picture" else SEEN if "timeline" in name else 1)
            if script:
                browser.run(script)
                time.sleep(1)
            browser.driver.save_screenshot(str(folder / f"{name}.png"))
    finally:
        browser.close()
        demo.terminate()
        demo.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(sys.argv[2:] or [""]))
