//! Option haggling: from the greeting to the agreement on an export (reference: "NBD").

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::proto::{self, ClientOption, OptionHeader, Terms, info, option, option_reply};
use super::server::{Export, Inner, NoEntry};
use super::socket::{Inbox, Socket};

/// What a client and we agreed on.
pub(super) struct Agreement {
    pub export: Export,
    pub terms: Terms,
}

pub(super) struct Negotiation<'a, 'b> {
    pub server: &'a Inner,
    pub session: u64,
    pub socket: &'b Socket,
    pub inbox: &'a mut Inbox<'b>,
    no_zeroes: bool,
    structured: bool,
    /// The export that [`proto::ALLOCATION`] was set for.
    allocation: Option<String>,
    out: Vec<u8>,
}

/// What an option leads to.
enum Next {
    Option,
    Begin(Agreement),
    End,
}

fn broken(rule: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, rule)
}

impl<'a, 'b> Negotiation<'a, 'b> {
    pub fn new(
        server: &'a Inner,
        session: u64,
        socket: &'b Socket,
        inbox: &'a mut Inbox<'b>,
    ) -> Self {
        Self {
            server,
            session,
            socket,
            inbox,
            no_zeroes: false,
            structured: false,
            allocation: None,
            out: Vec::new(),
        }
    }

    /// Runs until the client begins with an export or ends.
    pub fn run(mut self) -> io::Result<Option<Agreement>> {
        let deadline = Instant::now() + self.server.limits.handshake;
        self.inbox.set_deadline(Some(deadline))?;
        self.socket.send_all(&proto::greeting())?;
        self.client_flags()?;
        loop {
            let next = self.option()?;
            self.socket.send_all(&self.out)?;
            self.out.clear();
            match next {
                Next::Option => {}
                Next::End => return Ok(None),
                Next::Begin(agreement) => {
                    self.inbox.set_deadline(None)?;
                    return Ok(Some(agreement));
                }
            }
        }
    }

    fn client_flags(&mut self) -> io::Result<()> {
        let flags = self.inbox.take(4)?;
        let flags = flags
            .iter()
            .fold(0, |all, byte| all << 8 | u32::from(*byte));
        let known = u32::from(proto::FIXED_NEWSTYLE | proto::NO_ZEROES);
        if flags & !known != 0 {
            return Err(broken("unknown client flags"));
        }
        self.no_zeroes = flags & u32::from(proto::NO_ZEROES) != 0;
        Ok(())
    }

    fn option(&mut self) -> io::Result<Next> {
        while self.inbox.len() < proto::OPTION_HEADER {
            self.inbox.fill()?;
        }
        let header = self.inbox.peek().and_then(OptionHeader::parse);
        let header = header.ok_or_else(|| broken("not an option"))?;
        self.inbox.skip(proto::OPTION_HEADER);
        if header.len > proto::MAX_OPTION_BYTES {
            return self.too_big(header);
        }
        let data = self.inbox.take(header.len as usize)?;
        match ClientOption::parse(header.option, &data) {
            Some(option) => self.answer(header.option, option),
            None if header.option == option::EXPORT_NAME => Err(broken("not a name")),
            None => {
                self.refuse(header.option, option_reply::ERR_INVALID, "malformed option");
                Ok(Next::Option)
            }
        }
    }

    fn too_big(&mut self, header: OptionHeader) -> io::Result<Next> {
        if header.len > proto::MAX_SKIPPED_BYTES || header.option == option::EXPORT_NAME {
            return Err(broken("option too long"));
        }
        self.inbox.discard(header.len as usize)?;
        self.refuse(header.option, option_reply::ERR_TOO_BIG, "option too long");
        Ok(Next::Option)
    }

    fn reply(&mut self, option: u32, reply: u32, parts: &[&[u8]]) {
        proto::push_option_reply(&mut self.out, option, reply, parts);
    }

    fn refuse(&mut self, option: u32, reply: u32, text: &str) {
        self.reply(option, reply, &[text.as_bytes()]);
    }

    fn answer(&mut self, number: u32, option: ClientOption<'_>) -> io::Result<Next> {
        match option {
            ClientOption::ExportName(name) => return self.export_name(name),
            ClientOption::Info { name, wanted, go } => {
                return Ok(self.info(number, name, &wanted, go));
            }
            ClientOption::Abort => {
                self.reply(number, option_reply::ACK, &[]);
                return Ok(Next::End);
            }
            ClientOption::List => self.list(number),
            ClientOption::StructuredReply => {
                self.structured = true;
                self.reply(number, option_reply::ACK, &[]);
            }
            ClientOption::MetaContext { name, queries, set } => {
                self.meta_context(number, name, &queries, set);
            }
            ClientOption::StartTls => {
                self.refuse(number, option_reply::ERR_UNSUP, "TLS is not supported");
            }
            ClientOption::Unknown => {
                self.refuse(number, option_reply::ERR_UNSUP, "unknown option");
            }
        }
        Ok(Next::Option)
    }

    fn terms(&self, name: &str, export: &Export) -> Terms {
        let mut geometry = export.device.geometry();
        geometry.read_only |= export.options.read_only;
        Terms {
            structured: self.structured,
            // It was set for an export; for another one it means nothing.
            allocation: self.structured && self.allocation.as_deref() == Some(name),
            geometry,
        }
    }

    fn export_name(&mut self, name: &str) -> io::Result<Next> {
        let entered = self.server.enter(self.session, name);
        // This option has no way to say why not.
        let export = entered.map_err(|_| broken("no such export, or no room"))?;
        let terms = self.terms(name, &export);
        self.out
            .extend_from_slice(&terms.geometry.size.to_be_bytes());
        self.out.extend_from_slice(&terms.flags().to_be_bytes());
        if !self.no_zeroes {
            self.out.extend_from_slice(&[0; 124]);
        }
        Ok(Next::Begin(Agreement { export, terms }))
    }

    fn info(&mut self, number: u32, name: &str, wanted: &[u16], go: bool) -> Next {
        let export = if go {
            self.server.enter(self.session, name)
        } else {
            self.server.find(name)
        };
        let export = match export {
            Ok(export) => export,
            Err(why) => {
                self.no_entry(number, name, &why);
                return Next::Option;
            }
        };
        let terms = self.terms(name, &export);
        self.export_infos(number, name, wanted, &export, &terms);
        self.reply(number, option_reply::ACK, &[]);
        if go {
            Next::Begin(Agreement { export, terms })
        } else {
            Next::Option
        }
    }

    fn export_infos(
        &mut self,
        number: u32,
        name: &str,
        wanted: &[u16],
        export: &Export,
        terms: &Terms,
    ) {
        let mut tell = |kind: u16, parts: [&[u8]; 3]| {
            let [a, b, c] = parts;
            self.reply(number, option_reply::INFO, &[&kind.to_be_bytes(), a, b, c]);
        };
        let geometry = &terms.geometry;
        let size = geometry.size.to_be_bytes();
        tell(info::EXPORT, [&size, &terms.flags().to_be_bytes(), &[]]);
        // Also to those who did not ask: it says what is refused.
        let least = geometry.min_block.to_be_bytes();
        let best = geometry.preferred_block.to_be_bytes();
        tell(
            info::BLOCK_SIZE,
            [&least, &best, &geometry.max_request.to_be_bytes()],
        );
        if wanted.contains(&info::NAME) {
            tell(info::NAME, [name.as_bytes(), &[], &[]]);
        }
        let description = &export.options.description;
        if wanted.contains(&info::DESCRIPTION) && !description.is_empty() {
            tell(info::DESCRIPTION, [description.as_bytes(), &[], &[]]);
        }
    }

    fn no_entry(&mut self, number: u32, name: &str, why: &NoEntry) {
        let reply = match why {
            NoEntry::Unknown => option_reply::ERR_UNKNOWN,
            NoEntry::Full(_) => option_reply::ERR_POLICY,
            NoEntry::Stopping => option_reply::ERR_SHUTDOWN,
        };
        self.refuse(number, reply, &format!("export {name:?}: {why}"));
    }

    fn list(&mut self, number: u32) {
        for (name, description) in self.server.list() {
            let len = (name.len() as u32).to_be_bytes();
            let parts = [&len, name.as_bytes(), description.as_bytes()];
            self.reply(number, option_reply::SERVER, &parts);
        }
        self.reply(number, option_reply::ACK, &[]);
    }

    fn meta_context(&mut self, number: u32, name: &str, queries: &[&str], set: bool) {
        if set {
            self.allocation = None;
        }
        if !self.structured {
            let text = "structured replies come first";
            return self.refuse(number, option_reply::ERR_INVALID, text);
        }
        if let Err(why) = self.server.find(name) {
            return self.no_entry(number, name, &why);
        }
        if proto::selects_allocation(queries, set) {
            let id = if set { proto::ALLOCATION_ID } else { 0 };
            let parts = [&id.to_be_bytes()[..], proto::ALLOCATION.as_bytes()];
            self.reply(number, option_reply::META_CONTEXT, &parts);
            if set {
                self.allocation = Some(name.to_owned());
            }
        }
        self.reply(number, option_reply::ACK, &[]);
    }
}

/// Keeps the device alive only as long as the session.
impl Agreement {
    pub fn device(&self) -> &Arc<dyn crate::block::BlockDevice> {
        &self.export.device
    }
}
