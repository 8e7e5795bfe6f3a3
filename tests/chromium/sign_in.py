"""Signs in by Chromium: what is seen, said aloud, kept, and refused. Writes what it looks like into a folder."""

import atexit
import http.server
import sys
import threading

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

chromium, driver_path, url, name, password, folder = sys.argv[1:]

options = webdriver.ChromeOptions()
options.binary_location = chromium
for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1000,800"):
    options.add_argument(argument)
options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
driver = webdriver.Chrome(options=options, service=Service(driver_path))
driver.implicitly_wait(20)
# However this ends, nothing of it stays.
atexit.register(driver.quit)


def look(page):
    """The page as it looks on a phone and on a desk, by day and by night."""
    for device, size in {"phone": (390, 844), "desk": (1000, 800)}.items():
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 2, "mobile": device == "phone"}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        for scheme in ("light", "dark"):
            media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            wide = driver.execute_script("return document.documentElement.scrollWidth > window.innerWidth")
            assert not wide, f"{page} is wider than a {device}"
            driver.save_screenshot(f"{folder}/{page}-{device}-{scheme}.png")


def said():
    """What is read aloud: roles and names."""
    nodes = driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    value = lambda node, of: node.get(of, {}).get("value", "")
    return [(value(node, "role"), value(node, "name")) for node in nodes]


def field(of):
    return driver.find_element(By.NAME, of)


def comes(heading):
    """Waits for a page: the one before may be there for a moment. Its heading is read in one step, so that it is of one document."""
    read = "const first = document.querySelector('h1'); return first ? first.innerText : ''"
    WebDriverWait(driver, 20).until(lambda _: driver.execute_script(read).startswith(heading), heading)


def contrast(element):
    """How well a text can be told from its ground (WCAG 2.2)."""
    of = """
        const numbers = text => text.match(/[\\d.]+/g).map(Number);
        let ground = arguments[0];
        while (numbers(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
        return [numbers(getComputedStyle(arguments[0]).color), numbers(getComputedStyle(ground).backgroundColor)];
    """
    light = []
    for color in driver.execute_script(of, element):
        parts = [part / 255 for part in color[:3]]
        parts = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        light.append(0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


def readable(page):
    for scheme in ("light", "dark"):
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for element in driver.find_elements(By.CSS_SELECTOR, "h1, h2, label, p, button, strong, li, a"):
            assert contrast(element) >= 4.5, f"{page}, {scheme}: {element.text!r} has a contrast of {contrast(element):.1f}"


# Whoever has not signed in is sent to do so; the first field is ready to be typed into.
driver.get(url)
assert driver.current_url == url + "sign-in", driver.current_url
assert driver.switch_to.active_element.get_attribute("name") == "name"
for wanted in [("textbox", "Name"), ("textbox", "Password"), ("button", "Sign in")]:
    assert wanted in said(), (wanted, said())
look("sign-in")
readable("sign-in")

# By keyboard alone; what was wrong is said aloud, and the name stays.
driver.switch_to.active_element.send_keys(name, Keys.TAB, "wrong", Keys.ENTER)
alert = driver.find_element(By.CSS_SELECTOR, "[role=alert]")
assert alert.text == "Wrong name or password.", alert.text
assert field("name").get_attribute("value") == name and driver.switch_to.active_element.get_attribute("name") == "password"
look("refused")
readable("refused")

# Without scripts, which the pages have none of.
driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
field("password").send_keys(password, Keys.ENTER)
assert driver.find_element(By.CSS_SELECTOR, ".own").text == "this browser"
driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
driver.refresh()
comes(name)
look("own")
readable("own")
assert ("heading", "Where you are signed in") in said()

# The cookie is for this host, for no script, and not kept when the browser is closed.
cookies = driver.execute_cdp_cmd("Network.getAllCookies", {})["cookies"]
assert [cookie["name"] for cookie in cookies] == ["__Host-credhost"], cookies
kept = cookies[0]
assert kept["httpOnly"] and kept["secure"] and kept["session"] and kept["sameSite"] == "Lax", kept
assert kept["domain"] == "localhost" and kept["path"] == "/", kept

# Nothing that the pages want is against their own policy. A refusal is an answer of 403, which browsers write down.
log = [line for line in driver.get_log("browser") if "403 (Forbidden)" not in line["message"]]
assert not log, log


class Evil(http.server.BaseHTTPRequestHandler):
    """A page of another site, which sends a form as soon as it is seen."""

    def do_GET(self):
        form = f"<form method=post action='{url}sign-out'></form><script>document.forms[0].submit()</script>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(form.encode())

    def log_message(self, *_):
        pass


evil = http.server.HTTPServer(("127.0.0.1", 0), Evil)
threading.Thread(target=evil.serve_forever, daemon=True).start()
driver.get(f"http://127.0.0.1:{evil.server_port}/")
driver.find_element(By.XPATH, "//*[contains(text(), 'another site')]")
assert driver.current_url == url + "sign-out", driver.current_url
driver.get(url)
comes(name)

# No site can show it in a frame of its own.
driver.get(f"data:text/html,<iframe src='{url}'></iframe>")
driver.switch_to.frame(0)
assert name not in driver.page_source
driver.switch_to.default_content()

# A key is added, and is there; the password that is wrong is said aloud, and the key need not be typed once more.
driver.get(url)
driver.find_element(By.LINK_TEXT, "Add an SSH key or a certificate").click()
comes("Add an SSH key")
look("key")
readable("key")
line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti laptop"
driver.switch_to.active_element.send_keys(line, Keys.TAB, Keys.TAB, "wrong", Keys.ENTER)
assert driver.find_element(By.CSS_SELECTOR, "[role=alert]").text == "That is not the password."
assert field("key").get_attribute("value") == line
field("current").send_keys(password, Keys.ENTER)
comes(name)
assert "laptop" in driver.find_element(By.CSS_SELECTOR, "[role=status]").text
look("added")
readable("added")
driver.find_element(By.LINK_TEXT, "Take away").click()
comes("Take away")
look("take-away")
readable("take-away")
field("current").send_keys(password, Keys.ENTER)
comes(name)
assert "SSH key" not in driver.find_element(By.CSS_SELECTOR, "section[aria-labelledby=what]").text.replace("Add an SSH key", "")

# Another password, by keyboard; and then this browser has to sign in with it.
driver.find_element(By.LINK_TEXT, "Change the password").click()
comes("Change your password")
for wanted in [("textbox", "Your current password"), ("textbox", "The new one"), ("button", "Change")]:
    assert wanted in said(), (wanted, said())
look("password")
readable("password")
driver.switch_to.active_element.send_keys(password, Keys.TAB, password + "-2", Keys.TAB, password + "-2", Keys.ENTER)
comes("Your password was changed")
look("changed")
driver.get(url)
comes("Sign in")
field("name").send_keys(name, Keys.TAB, password + "-2", Keys.ENTER)
comes(name)

driver.get(url)
driver.find_element(By.XPATH, "//button[text()='Sign out']").click()
comes("Sign in")
assert driver.execute_cdp_cmd("Network.getAllCookies", {})["cookies"] == []
driver.back()
driver.refresh()
# Nothing was kept to go back to.
comes("Sign in")
