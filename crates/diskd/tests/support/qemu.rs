//! A QEMU with the quick guest, whose shell is driven over the serial port.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use serde_json::{Value, json};
use testkit::guest::GuestImages;

use super::support::LIMIT;

/// A running QEMU, ended when dropped.
pub(crate) struct Qemu {
    child: Child,
    input: ChildStdin,
    output: Receiver<String>,
    qmp: BufReader<UnixStream>,
    /// Everything that the guest has said.
    said: String,
    commands: u32,
}

impl Qemu {
    /// Boots a guest on the disk at `disk`, or waits for one that comes to `incoming`. Files go
    /// to `folder`.
    pub(crate) fn start(folder: &Path, disk: &Path, incoming: Option<&str>) -> Self {
        let images = GuestImages::build_or_get().unwrap();
        let qmp = folder.join("qmp.sock");
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-nodefaults", "-no-user-config", "-display", "none"])
            .args(["-accel", "tcg", "-machine", "q35,memory-backend=ram"])
            .args(["-m", "256M", "-smp", "2"])
            .args(["-object", "memory-backend-memfd,id=ram,size=256M,share=on"])
            .args(["-chardev", "stdio,id=console,signal=off"])
            .args(["-serial", "chardev:console"])
            .arg("-kernel")
            .arg(images.kernel)
            .arg("-initrd")
            .arg(images.initrd)
            .args(["-append", "console=ttyS0 no_timer_check loglevel=1 panic=5"])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", qmp.display()))
            .arg("-chardev")
            .arg(format!(
                "socket,id=disk,path={},reconnect-ms=100",
                disk.display()
            ))
            .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=2"]);
        if let Some(incoming) = incoming {
            command.args(["-incoming", incoming]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (send, output) = channel();
        let mut serial = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(len @ 1..) = serial.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..len]).into_owned();
                if send.send(text).is_err() {
                    return;
                }
            }
        });
        Self {
            input: child.stdin.take().unwrap(),
            child,
            output,
            qmp: connect(qmp),
            said: String::new(),
            commands: 0,
        }
    }

    /// Waits until the guest says `text`, from `from` of what it said on; where that ends.
    fn wait_said(&mut self, from: usize, text: &str) -> usize {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.said[from..].find(text) {
                return from + at + text.len();
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(more) => self.said.push_str(&more),
                Err(_) => panic!("no {text:?} in what the guest said:\n{}", self.said),
            }
        }
    }

    /// Waits until its shell is there.
    pub(crate) fn wait_up(&mut self) {
        self.wait_said(0, "/ # ");
        // A shell without prompt, echo or line editor.
        let shell = b"stty -echo; echo \"rea\"dy; sh 2>&1 | cat\n";
        self.input.write_all(shell).unwrap();
        // Typed before that, a command would go to the editor.
        self.wait_said(0, "\nready\r\n");
        // Its driver may come later than the shell.
        self.run("until test -e /sys/block/vda/size; do sleep 0.1; done");
    }

    /// Types a command; its number.
    pub(crate) fn begin(&mut self, command: &str) -> u32 {
        self.commands += 1;
        let number = self.commands;
        let line = format!("{command}; r=$?; echo; echo \"<$r\" {number}\">\"\n");
        self.input.write_all(line.as_bytes()).unwrap();
        number
    }

    /// Waits until a command ends well.
    pub(crate) fn end(&mut self, number: u32) {
        let text = format!(" {number}>\r\n");
        let end = self.wait_said(0, &text);
        let said = &self.said[..end];
        assert!(said.ends_with(&format!("<0{text}")), "{said}");
    }

    /// Runs a command.
    pub(crate) fn run(&mut self, command: &str) {
        let number = self.begin(command);
        self.end(number);
    }

    /// Runs a QMP command.
    pub(crate) fn qmp(&mut self, command: &str, arguments: &Value) -> Value {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.qmp.get_mut(), "{request}").unwrap();
        loop {
            let answer = read(&mut self.qmp);
            if let Some(value) = answer.get("return") {
                return value.clone();
            }
            assert!(answer.get("error").is_none(), "{command}: {answer}");
        }
    }
}

fn read(qmp: &mut BufReader<UnixStream>) -> Value {
    let mut line = String::new();
    qmp.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

fn connect(path: PathBuf) -> BufReader<UnixStream> {
    let stream = super::until(|| UnixStream::connect(&path).ok());
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut qmp = BufReader::new(stream);
    read(&mut qmp);
    writeln!(qmp.get_mut(), "{}", json!({"execute": "qmp_capabilities"})).unwrap();
    read(&mut qmp);
    qmp
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
