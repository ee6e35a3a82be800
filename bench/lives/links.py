"""Three processes whose connections to each other pass through proxies, which can stop any of them in either direction."""

import asyncio
import os
import pathlib
import threading

from servers import FlareDB, free_ports

CHUNK_BYTES = 1 << 16


class Linked(FlareDB):
    """Who dials whom is known from the socket's owner: a link is (from, to), of the one who dialled."""

    def reached_at(self):
        self.proxies = free_ports(len(self.grpc))
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        # Events of links; set: bytes pass.
        self.links = {}
        for n in range(len(self.grpc)):
            asyncio.run_coroutine_threadsafe(self.serve(n), self.loop).result()
        return list(self.proxies)

    def advertised(self, n):
        return ["--advertise", f"127.0.0.1:{self.proxies[n]}"]

    def pd_leader(self):
        address = self.ctl("pd", "leader")["address"]
        return self.proxies.index(int(address.rsplit(":", 1)[1]))

    def __exit__(self, *stack):
        self.heal()
        super().__exit__(*stack)
        self.loop.call_soon_threadsafe(self.loop.stop)

    def cut(self, *links):
        """Bytes wait from now on: what a partition does to TCP. `links`: (sender, receiver)."""
        for link in links:
            self.loop.call_soon_threadsafe(self.link(*link).clear)

    def heal(self):
        for event in list(self.links.values()):
            self.loop.call_soon_threadsafe(event.set)

    def link(self, sender, receiver):
        if (sender, receiver) not in self.links:
            event = asyncio.Event()
            event.set()
            self.links[sender, receiver] = event
        return self.links[sender, receiver]

    async def serve(self, n):
        await asyncio.start_server(lambda reader, writer: self.connection(n, reader, writer), "127.0.0.1", self.proxies[n])

    async def connection(self, n, reader, writer):
        dialler = self.owner(writer.get_extra_info("peername")[1])
        try:
            # It is not heard, so it does not get through either.
            if dialler is not None:
                await self.link(dialler, n).wait()
            back, forth = await asyncio.open_connection("127.0.0.1", self.grpc[n])
        except OSError:
            writer.close()
            return
        ways = [self.pump(reader, forth, dialler, n), self.pump(back, writer, n, dialler)]
        await asyncio.gather(*ways, return_exceptions=True)

    async def pump(self, reader, writer, sender, receiver):
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                if sender is not None and receiver is not None:
                    await self.link(sender, receiver).wait()
                writer.write(chunk)
                await writer.drain()
        finally:
            writer.close()

    def owner(self, port):
        """Which node has the socket of this local port; None: none of them."""
        inode = None
        for line in pathlib.Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if int(fields[1].rsplit(":", 1)[1], 16) == port:
                inode = fields[9]
        for n, process in enumerate(self.processes):
            try:
                for fd in os.scandir(f"/proc/{process.pid}/fd"):
                    if os.readlink(fd.path) == f"socket:[{inode}]":
                        return n
            except OSError:
                continue  # It has ended, or closed it.
        return None
