//! Certificates that do not do, on either of two hosts: what a person is told on both, and that the command
//! which is named there mends it. No guest runs: the VM is off, and its points come all the same.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pollux_tests::{Host, Pair, json_u64, text, until};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use serde_json::Value;

/// For machines that are busy.
const LIMIT: Duration = Duration::from_secs(180);
/// Years in which a certificate is valid.
const NOW: (i32, i32) = (2020, 2090);
const PAST: (i32, i32) = (2001, 2002);
const FUTURE: (i32, i32) = (2080, 2090);

/// An authority of a company, and the folder with what it issues.
struct Authority {
    key: KeyPair,
    params: CertificateParams,
    folder: PathBuf,
    issued: u64,
}

/// A host's certificate, its key, and its authority's certificate: files.
struct Issued {
    serial: u64,
    files: [PathBuf; 3],
}

impl Authority {
    fn new(name: &str, folder: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let folder = folder.join(name);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("ca.pem"), params.self_signed(&key)?.pem())?;
        Ok(Self {
            key,
            params,
            folder,
            issued: 0,
        })
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    fn file(&self) -> String {
        shown(&self.folder.join("ca.pem"))
    }

    fn issue(&mut self, name: &str, years: (i32, i32)) -> Result<Issued> {
        self.issued += 1;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        params.serial_number = Some(SerialNumber::from(self.issued));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let made = params.signed_by(&key, &self.issuer())?;
        let file = |kind: &str| self.folder.join(format!("{}.{kind}", self.issued));
        let files = [file("pem"), file("key"), self.folder.join("ca.pem")];
        fs::write(&files[0], made.pem())?;
        fs::write(&files[1], key.serialize_pem())?;
        Ok(Issued {
            serial: self.issued,
            files,
        })
    }

    /// The list that takes a certificate back.
    fn revokes(&self, issued: &Issued) -> Result<String> {
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(issued.serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: vec![revoked],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let file = self.folder.join(format!("{}.crl", issued.serial));
        fs::write(&file, list.signed_by(&self.issuer())?.pem()?)?;
        Ok(shown(&file))
    }
}

impl Issued {
    fn shown(&self) -> [String; 3] {
        self.files.each_ref().map(|file| shown(file))
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The command that a text tells to run, as words, but for the program's name.
fn command(text: &str) -> Result<Vec<String>> {
    let told = text.split_once("run `pollux ");
    let (_, rest) = told.with_context(|| format!("no command to run in: {text}"))?;
    let (command, _) = rest.split_once('`').context("it has an end")?;
    Ok(command.split(' ').map(str::to_owned).collect())
}

/// Runs the command that a text names on `host`, with these in the places that it leaves open.
fn run(host: &Host, text: &str, places: &[String]) -> Result<()> {
    let mut places = places.iter();
    let mut words = command(text)?;
    for word in &mut words {
        if *word == "FILE" || word.starts_with('<') {
            let place = places.next();
            place
                .with_context(|| format!("what is {word} of {text}"))?
                .clone_into(word);
        }
    }
    ensure!(
        places.next().is_none(),
        "fewer places than expected: {text}"
    );
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    host.pollux(&words)?;
    Ok(())
}

/// Shows `issued` from now on, as a host does whose certificate was valid when it was given.
fn shows(host: &mut Host, issued: &Issued) -> Result<()> {
    let [certificate, key, authority] = issued.files.each_ref().map(fs::read_to_string);
    host.kill_daemon()?;
    let given = [key?, certificate?, authority?].concat();
    fs::write(host.state().join("identity/given.pem"), given)?;
    host.start_daemon()
}

fn gives(host: &Host, issued: &Issued) -> Result<()> {
    let [certificate, key, authority] = &issued.shown();
    let rest = ["--key", key, "--authority", authority];
    host.pollux(&[&["host", "certificate", certificate], &rest[..]].concat())?;
    Ok(())
}

fn newest(pair: &Pair) -> Result<u64> {
    let points = pair.points("web");
    json_u64(points.last().context("a point")?, "/id/sequence")
}

fn goes_on(pair: &Pair) -> Result<()> {
    let before = newest(pair)?;
    until(LIMIT, "newer points come", || {
        Ok((newest(pair)? > before + 1).then_some(()))
    })?;
    until(LIMIT, "the primary has nothing to say any more", || {
        let status = pair.castor.json(&["replica", "status", "web"])?;
        Ok(status
            .pointer("/0/last_error")
            .is_none_or(Value::is_null)
            .then_some(()))
    })
}

/// What the primary says that stands in the way, once it is this: the way out. It says the same of a VM that
/// is to be replicated now, and in the table for people.
fn told(pair: &Pair, says: &str) -> Result<String> {
    let castor = &pair.castor;
    let mut last = Value::Null;
    let way_out = until(LIMIT, &format!("the primary says: {says}"), || {
        last = castor.json(&["replica", "health", "web"])?;
        let messages = last.pointer("/0/messages").and_then(Value::as_array);
        let found = messages.into_iter().flatten().find(|message| {
            let is = |part: &str, what: &str| text(message, part).is_ok_and(|it| it.contains(what));
            is("/reason", "cannot-send") && is("/what", says)
        });
        let way_out = found.map(|one| text(one, "/way_out").map(str::to_owned));
        way_out.transpose()
    });
    let way_out = way_out.with_context(|| format!("it says {last}"))?;
    // In the middle of a sentence here, and at its beginning there.
    let way_out = way_out.replacen("Run `", "run `", 1);
    let wanted = command(&way_out)?.join(" ");
    let refused = castor.refused(&["replica", "enable", "db", "--to", "pollux"])?;
    let status = castor.pollux(&["replica", "status", "web"])?;
    for shown in [&refused.message, &status] {
        ensure!(shown.contains(says), "{says}: {shown}");
        ensure!(shown.contains(&wanted), "{wanted}: {shown}");
    }
    Ok(way_out)
}

/// The last certificate that `host` refused, and why; the way out.
fn refuses(host: &Host, says: &str) -> Result<String> {
    let status = host.json(&["host", "status"])?;
    let (thing, reason) = (
        text(&status, "/refused/0/thing")?,
        text(&status, "/refused/0/reason")?,
    );
    ensure!(thing == "host `castor`", "{status}");
    ensure!(reason.contains(says), "{says}: {reason}");
    Ok(text(&status, "/refused/0/way_out")?.to_owned())
}

/// Two hosts with certificates of one company, each trusted by name, and points that come.
fn with_certificates(what: &str) -> Result<(Pair, Authority)> {
    let pair = Pair::new(what)?;
    let mut company = Authority::new("company", pair.scratch.state())?;
    let (castor, pollux) = (&pair.castor, &pair.pollux);
    for host in [castor, pollux] {
        gives(host, &company.issue(host.name(), NOW)?)?;
    }
    trusts(castor, "pollux", &pair.wire.address(), &company)?;
    trusts(pollux, "castor", &address(castor), &company)?;
    for vm in ["web", "db"] {
        castor.pollux(&["vm", "create", vm, "--memory", "64MiB", "--disk", "8MiB"])?;
    }
    pair.replicate("web")?;
    pair.wait_for_points("web", 2)?;
    Ok((pair, company))
}

fn address(host: &Host) -> String {
    format!("127.0.0.1:{}", host.port())
}

fn trusts(host: &Host, name: &str, address: &str, authority: &Authority) -> Result<()> {
    let by = ["--authority", &authority.file()];
    host.pollux(&[&["host", "trust", name, address], &by[..]].concat())?;
    Ok(())
}

#[test]
fn a_primary_whose_certificate_does_not_do_is_told_the_command_that_mends_it() -> Result<()> {
    let (mut pair, mut company) = with_certificates("certificates-primary")?;
    for (years, here, there) in [
        (PAST, "its certificate has expired", "expired on 2002-01-01"),
        (
            FUTURE,
            "its certificate is not valid before 2080-01-01",
            "is not valid before 2080-01-01",
        ),
    ] {
        shows(&mut pair.castor, &company.issue("castor", years)?)?;
        let way_out = told(&pair, here)?;
        ensure!(way_out.contains("on `castor`"), "{way_out}");
        let theirs = refuses(&pair.pollux, there)?;
        ensure!(command(&theirs)? == command(&way_out)?, "{theirs}");
        run(
            &pair.castor,
            &way_out,
            &company.issue("castor", NOW)?.shown(),
        )?;
        goes_on(&pair)?;
    }

    // Also on the connections that are open.
    let castors = company.issue("castor", NOW)?;
    gives(&pair.castor, &castors)?;
    goes_on(&pair)?;
    let list = company.revokes(&castors)?;
    pair.pollux.pollux(&["host", "revoke", &list])?;
    let way_out = told(&pair, "was revoked")?;
    ensure!(way_out.contains("on `castor`"), "{way_out}");
    let theirs = refuses(&pair.pollux, "was revoked by its authority")?;
    ensure!(command(&theirs)? == command(&way_out)?, "{theirs}");
    run(
        &pair.castor,
        &way_out,
        &company.issue("castor", NOW)?.shown(),
    )?;
    goes_on(&pair)?;

    // An authority that is trusted for another name, and one that is trusted for none.
    let mut nobodys = Authority::new("nobodys", pair.scratch.state())?;
    trusts(&pair.pollux, "leda", "127.0.0.1:1", &company)?;
    trusts(&pair.pollux, "castor", &address(&pair.castor), &nobodys)?;
    is_trusted_as_told(&pair, "is for `castor`")?;
    gives(&pair.castor, &nobodys.issue("castor", NOW)?)?;
    is_trusted_as_told(&pair, "is from another authority")
}

/// The primary is a stranger, as the replica says for this reason, until it is trusted with the command that
/// the primary names. The replica names the same one, but for the address, which it cannot know.
fn is_trusted_as_told(pair: &Pair, says: &str) -> Result<()> {
    let way_out = told(pair, "does not trust this host")?;
    let theirs = refuses(&pair.pollux, says)?;
    let mut wanted = command(&way_out)?;
    let at = wanted.get_mut(3).context("an address")?;
    ensure!(*at == address(&pair.castor), "{way_out}");
    "<address>".clone_into(at);
    ensure!(command(&theirs)? == wanted, "{theirs}");
    run(&pair.pollux, &way_out, &[])?;
    goes_on(pair)
}

#[test]
fn a_replica_whose_certificate_does_not_do_is_refused_with_the_command_that_mends_it() -> Result<()>
{
    let (mut pair, mut company) = with_certificates("certificates-replica")?;
    for (years, says) in [
        (PAST, "expired on 2002-01-01"),
        (FUTURE, "is not valid before 2080-01-01"),
    ] {
        shows(&mut pair.pollux, &company.issue("pollux", years)?)?;
        let way_out = told(&pair, &format!("shows a certificate that {says}"))?;
        ensure!(way_out.contains("on `pollux`"), "{way_out}");
        let status = pair.pollux.json(&["host", "status"])?;
        ensure!(
            text(&status, "/certificates/0/reason")?.contains(says),
            "{status}"
        );
        let own = text(&status, "/certificates/0/way_out")?;
        ensure!(own.contains(&command(&way_out)?.join(" ")), "{own}");
        run(
            &pair.pollux,
            &way_out,
            &company.issue("pollux", NOW)?.shown(),
        )?;
        goes_on(&pair)?;
    }

    // Also on the connections that are open.
    let polluxs = company.issue("pollux", NOW)?;
    gives(&pair.pollux, &polluxs)?;
    // Those that show the one before are still open.
    pair.wire.cut();
    pair.wire.mend();
    goes_on(&pair)?;
    pair.castor
        .pollux(&["host", "revoke", &company.revokes(&polluxs)?])?;
    let way_out = told(
        &pair,
        "shows a certificate that was revoked by its authority",
    )?;
    ensure!(way_out.contains("on `pollux`"), "{way_out}");
    run(
        &pair.pollux,
        &way_out,
        &company.issue("pollux", NOW)?.shown(),
    )?;
    goes_on(&pair)?;

    let mut nobodys = Authority::new("nobodys", pair.scratch.state())?;
    gives(&pair.pollux, &nobodys.issue("pollux", NOW)?)?;
    pair.wire.cut();
    pair.wire.mend();
    let way_out = told(&pair, "is from another authority")?;
    let fingerprint = |host: &Host| -> Result<String> {
        let identity = host.json(&["host", "identity"])?;
        Ok(text(&identity, "/fingerprint")?.to_owned())
    };
    run(&pair.castor, &way_out, &[fingerprint(&pair.pollux)?])?;
    goes_on(&pair)?;

    // Another host answers at the address; it was not the one that was meant, or it was.
    let leda = Host::start("leda", &pair.scratch)?;
    leda.pollux(&["replica", "server", "enable"])?;
    trusts(&leda, "castor", &address(&pair.castor), &company)?;
    gives(&leda, &company.issue("leda", NOW)?)?;
    trusts(&pair.castor, "pollux", &address(&leda), &company)?;
    let way_out = told(&pair, "shows a certificate that is for `leda`")?;
    let corrects = "correct the address with `pollux host trust pollux`";
    ensure!(way_out.contains(corrects), "{way_out}");
    pair.castor.trust(&pair.pollux, &pair.wire.address())?;
    goes_on(&pair)?;
    run(&pair.castor, &way_out, &[fingerprint(&leda)?])?;
    let enable = ["replica", "enable", "db", "--to", "leda"];
    pair.castor
        .pollux(&[&enable[..], &["--frequency", "1s"]].concat())?;
    until(LIMIT, "its points come", || {
        let points = leda.json(&["point", "list", "db"]);
        Ok(points.is_ok_and(|all| all.get(0).is_some()).then_some(()))
    })
}
