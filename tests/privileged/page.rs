//! The page of `pgleak watch` in a real browser: from the token to the ticket.

use std::fs;

use pgleak_tests::{Build, browser::Browser, planted, service::Service};
use xtask::workspace;

use crate::common::{Leaking, PATIENCE, server};

const CONFIG: &str = r#"
    [census]
    interval = "1s"
    [triggers.growth]
    enabled = false
    [capture]
    overhead = "full"
    duration = "2s"
    settle = "500ms"
    [budget]
    probed_per_hour = "1h"
    probed_per_hour_and_process = "1h"
    [web]
    listen = ["127.0.0.1:0"]
"#;

/// Where somebody can look at the pages afterwards.
fn picture(name: &str) -> std::path::PathBuf {
    let directory = workspace::target().join("screenshots");
    fs::create_dir_all(&directory).unwrap();
    directory.join(format!("{name}.png"))
}

#[test]
fn from_the_token_to_the_ticket() {
    let server = server(&Build::packaged(15).unwrap());
    planted::install(&server).unwrap();
    let session = planted::session(&server).unwrap();
    let pid = session.backend_pid();
    let service = Service::start(&server, CONFIG).unwrap();
    let _leaking = Leaking::start(session);
    let line = service.running().wait_for("watching: ", PATIENCE).unwrap();
    let (_, rest) = line.split_once("://127.0.0.1:").unwrap();
    let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let site = format!("http://localhost:{port}");
    let token = fs::read_to_string(service.store().join("token")).unwrap().trim().to_owned();

    for (number, (name, size, is_dark)) in
        [("light", (1280, 900), false), ("narrow-dark", (360, 800), true)].into_iter().enumerate()
    {
        let mut browser = Browser::start(size, is_dark).unwrap();
        // The token, wrong and right.
        browser.go(&site).unwrap();
        let give = |browser: &mut Browser, token: &str| {
            browser.wait_for("!!document.getElementById('token')").unwrap();
            browser.evaluate(&format!("document.getElementById('token').value = '{token}'")).unwrap();
            browser.click("button", "Open").unwrap();
        };
        give(&mut browser, "wrong");
        browser.wait_for("location.hash == '#again'").unwrap();
        give(&mut browser, &token);
        let row = format!(
            "[...document.querySelectorAll('#processes tbody tr')].find(row => row.textContent.includes('{pid}'))"
        );
        browser.wait_for(&format!("!!({row})")).unwrap();
        // What was refused before is what the browser complains of.
        browser.complaints();

        // Sorted, filtered.
        browser.click("#processes th button", "Growth").unwrap();
        browser
            .evaluate(
                "(() => { const filter = document.getElementById('filter'); filter.value = 'checkpointer'; \
                 filter.dispatchEvent(new Event('input', { bubbles: true })); })()",
            )
            .unwrap();
        browser.wait_for(&format!("!({row}) || ({row}).hidden || ({row}).offsetParent === null")).unwrap();
        browser
            .evaluate(
                "(() => { const filter = document.getElementById('filter'); filter.value = ''; \
                 filter.dispatchEvent(new Event('input', { bubbles: true })); })()",
            )
            .unwrap();
        browser.wait_for(&format!("!!({row})")).unwrap();
        browser.screenshot(&picture(&format!("processes-{name}"))).unwrap();

        // One process, with its plots.
        assert_eq!(
            browser.evaluate("document.querySelector('nav [aria-current]').textContent").unwrap(),
            "Processes"
        );
        browser.evaluate(&format!("({row}).querySelector('a[href^=\"/process\"]').click()")).unwrap();
        browser
            .wait_for("document.querySelectorAll('#memory svg path, #memory svg polyline').length > 0")
            .unwrap();
        browser.wait_for("document.getElementById('legend').textContent.includes('planted leak')").unwrap();
        let range = browser.evaluate("document.getElementById('range').textContent").unwrap();
        browser.evaluate("document.getElementById('memory').focus()").unwrap();
        browser.press("+").unwrap();
        browser.wait_for(&format!("document.getElementById('range').textContent != {range}")).unwrap();
        browser.press("0").unwrap();
        browser.click("#measure", "What is its own, exactly?").unwrap();
        browser
            .wait_for("document.getElementById('rollup').textContent.includes('MiB go when it ends')")
            .unwrap();
        browser.screenshot(&picture(&format!("process-{name}"))).unwrap();

        // Captured now.
        browser.click("#offer button", "Capture now").unwrap();
        let capture = number + 1;
        browser.wait_for(&format!("!!document.querySelector('a[href=\"/capture?n={capture}\"]')")).unwrap();
        browser.go(&format!("{site}/capture?n={capture}")).unwrap();
        browser
            .wait_for("document.getElementById('answer').textContent.includes('planted_leak_palloc')")
            .unwrap();
        browser.wait_for("document.getElementById('suspects').textContent.includes('planted leak')").unwrap();
        for (tab, file) in
            [("inverted", "flame-inverted.svg"), ("contexts", "contexts.svg"), ("flame", "flame.svg")]
        {
            browser.evaluate(&format!("document.getElementById('tab-{tab}').click()")).unwrap();
            browser
                .wait_for(&format!(
                    "document.getElementById('frame').src.endsWith('/captures/{capture}/{file}') && \
                     document.getElementById('tab-{tab}').getAttribute('aria-selected') == 'true'"
                ))
                .unwrap();
        }
        if capture > 1 {
            browser.evaluate("document.getElementById('tab-since').click()").unwrap();
            browser
                .wait_for("document.getElementById('table').textContent.includes('planted_leak_palloc')")
                .unwrap();
        }
        browser.click("#copy", "Copy for the ticket").unwrap();
        browser.wait_for("document.getElementById('said').textContent.length > 0").unwrap();
        let ticket = browser.evaluate("document.getElementById('ticket').value").unwrap();
        assert!(ticket.as_str().unwrap().contains("planted\\_leak\\_palloc"), "{ticket}");
        // It never scrolls sideways.
        let wide = "document.documentElement.scrollWidth <= document.documentElement.clientWidth";
        let widest = "JSON.stringify([...document.querySelectorAll('main *')].filter(e => \
             e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.tagName + '#' + e.id))";
        let too_wide = browser.evaluate(widest).unwrap();
        assert_eq!(browser.evaluate(wide).unwrap(), true, "{name}: {too_wide}");
        browser.screenshot(&picture(&format!("capture-{name}"))).unwrap();

        browser.click("nav a", "Captures").unwrap();
        browser
            .wait_for(
                "location.pathname == '/captures' && document.readyState == 'complete' && \
                 document.body.textContent.includes('planted_leak_palloc')",
            )
            .unwrap();
        browser.screenshot(&picture(&format!("captures-{name}"))).unwrap();
        assert_eq!(browser.complaints(), Vec::<String>::new(), "{name}");

        // The script of a picture runs, under its own policy.
        browser.go(&format!("{site}/captures/{capture}/flame.svg")).unwrap();
        browser.wait_for("typeof zoom == 'function' && !!document.getElementById('unzoom')").unwrap();
        assert_eq!(browser.complaints(), Vec::<String>::new(), "{name}");
    }
}
