"""Look at pages in a real browser: `make page-check`, or `python tests/look_at_page.py PAGE ... [--out FOLDER]`.

Each page is opened at 1280 and 390 pixels and printed to A4. It fails where the console has an error, something is
asked for from elsewhere, is wider than the window or cut, a table is not sorted, or no value shown under the pointer.
The screenshots and the PDF stay in the folder, to be looked at.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

WIDTHS = (1280, 390)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# What sticks out of the window, or of the picture that it belongs to, other than inside something that scrolls.
WIDER = """() => {
  const wide = document.documentElement.clientWidth, found = [];
  const all = document.documentElement.scrollWidth;
  if (all > wide) found.push(`the page is ${all} wide`);
  for (const node of document.querySelectorAll("body *")) {
    const box = node.getBoundingClientRect();
    if (box.width && !node.closest(".scroll, pre, [data-tip], defs") && (box.right > wide + 1 || box.left < -1))
      found.push(`${node.tagName} '${node.textContent.trim().slice(0, 40)}' from ${box.left} to ${box.right}`);
  }
  for (const text of document.querySelectorAll("svg text")) {
    const box = text.getBoundingClientRect(), all = text.closest("svg").getBoundingClientRect();
    if (box.left < all.left - 6 || box.right > all.right + 6 || box.top < all.top - 6 || box.bottom > all.bottom + 6)
      found.push(`'${text.textContent}' is cut out of its picture`);
  }
  return found;
}"""
SEEN = """shape => {
  const box = shape.getBoundingClientRect(), frame = shape.closest(".scroll").getBoundingClientRect();
  return [Math.max(box.left, frame.left), Math.max(box.top, 0), Math.min(box.right, frame.right),
          Math.min(box.bottom, innerHeight)];
}"""
SMALLEST = """() => Math.min(...[...document.querySelectorAll("svg text")].map(text => {
  const { a, b } = text.getScreenCTM();
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
}))"""


def look(page: Page, path: Path, width: int, out: Path) -> list[str]:
    """What is wrong with a page in a window of so many pixels."""
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(f"console: {message.text}") if message.type in (
        "error", "warning") else None)
    page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
    page.on("request", lambda request: wrong.append(f"asks for {request.url[:80]}") if not request.url.startswith(
        ("file:", "data:")) else None)
    page.goto(path.resolve().as_uri())
    wrong += page.evaluate(WIDER)
    page.screenshot(path=out / f"{path.parent.name}-{width}.png", full_page=True)
    if page.query_selector("svg text"):
        print(f"{path}: at {width} pixels the smallest words of a picture have {page.evaluate(SMALLEST):.1f} pixels")
    for table in page.query_selector_all("table.sortable"):
        head = table.query_selector("thead th:last-child button")
        head.click()
        if not table.query_selector("th[aria-sort]"):
            wrong.append("a table is not sorted when its head is pressed")
    for kind in ("figure.grid image", "figure.bars [data-tip]"):
        if shape := page.query_selector(kind):
            shape.scroll_into_view_if_needed()
            page.wait_for_timeout(200)  # a scroll hides what is shown
            left, top, right, bottom = shape.evaluate(SEEN)
            for part in (0.3, 0.7):
                page.mouse.move(left + (right - left) * part, top + (bottom - top) * 0.45)
                page.wait_for_timeout(50)
                if page.query_selector("#tip").is_visible():
                    break
            else:
                wrong.append(f"nothing is shown under the pointer on {kind}")
    return [f"{path}, {width} pixels: {each}" for each in wrong]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("looked_at"), help="folder of screenshots and PDF files")
    parser.add_argument("--browser", default=next(filter(None, map(shutil.which, BROWSERS)), None),
                        help="a Chromium (default: of the PATH, or else the one that playwright has installed)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    wrong = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
        for path in args.pages:
            for width in WIDTHS:
                context = browser.new_context(viewport={"width": width, "height": 844}, has_touch=width < 500,
                                              device_scale_factor=2 if width < 500 else 1)
                wrong += look(context.new_page(), path, width, args.out)
                context.close()
            page = browser.new_page()
            page.goto(path.resolve().as_uri())
            page.pdf(path=args.out / f"{path.parent.name}.pdf", format="A4", print_background=True)
            page.close()
        browser.close()
    print("\n".join(wrong) if wrong else f"nothing wrong with {len(args.pages)} pages; look at {args.out}/ yourself")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
