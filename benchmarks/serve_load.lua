-- wrk script: random bodies from a file of lines; with a third argument, exponential pauses of that mean (ms) between
-- the requests of a connection, so that many connections together make a Poisson stream. Prints one line of JSON.
local bodies = {}
local pause = 0

function init(args)
   for line in io.lines(args[1]) do
      bodies[#bodies + 1] = wrk.format("POST", args[2], { ["Content-Type"] = "application/json" }, line)
   end
   pause = tonumber(args[3] or "0")
   math.randomseed(os.time() + tonumber(tostring({}):sub(8), 16) % 100000)
end

function request()
   return bodies[math.random(#bodies)]
end

function delay()
   if pause == 0 then return 0 end
   return math.floor(-math.log(1 - math.random()) * pause + 0.5)
end

function done(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      '{"requests": %d, "seconds": %.3f, "p50_ms": %.3f, "p90_ms": %.3f, "p99_ms": %.3f, "max_ms": %.3f, ' ..
      '"status_errors": %d, "socket_errors": %d, "timeouts": %d}\n',
      summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(90) / 1e3,
      latency:percentile(99) / 1e3, latency.max / 1e3, e.status, e.connect + e.read + e.write, e.timeout))
end
