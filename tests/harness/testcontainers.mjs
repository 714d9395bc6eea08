/** Stands for the package `testcontainers` in the example of docs/testing.md: no engine runs here.
 *
 * It runs the command of the container on this machine, on ports of its own.
 */

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";

export const Wait = { forHttp: (path, port) => ({ path, port }) };

export class GenericContainer {
  withCommand(parts) {
    this.parts = parts;
    return this;
  }

  withExposedPorts(...ports) {
    this.ports = ports;
    return this;
  }

  withWaitStrategy(wait) {
    this.wait = wait;
    return this;
  }

  async start() {
    const parts = this.parts.map((it) => (this.ports.includes(Number(it)) ? "0" : it));
    const server = spawn("orchmgmt", [...parts, "--json"], { stdio: ["pipe", "pipe", "inherit"] });
    const ended = once(server, "exit");
    const [line] = await once(createInterface(server.stdout), "line");
    const { url, control } = JSON.parse(line);
    const mapped = new Map([url, control].map((it, at) => [this.ports[at], new URL(it).port]));
    const { path, port } = this.wait;
    const health = await fetch(`http://127.0.0.1:${mapped.get(port)}${path}`);
    if (!health.ok) throw new Error(`${path} was answered with ${health.status}`);
    return {
      getHost: () => "127.0.0.1",
      getMappedPort: (it) => Number(mapped.get(it)),
      async stop() {
        server.stdin.end(); // the test server ends with its standard input
        const [code] = await ended;
        if (code !== 0) throw new Error(`the test server has ended with ${code}`);
      },
    };
  }
}
