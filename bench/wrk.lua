-- Sends one body over and over; at the end prints what was counted as one line of JSON on stderr.
-- Arguments: file with the body, then name and value of each header.
init = function(args)
  local file = assert(io.open(args[1], "rb"))
  wrk.method, wrk.body = "POST", file:read("*all")
  for i = 2, #args, 2 do
    wrk.headers[args[i]] = args[i + 1]
  end
end

done = function(summary, latency, _)
  local errors = summary.errors
  io.stderr:write(string.format(
    '{"responses": %d, "error_responses": %d, "broken": %d, "seconds": %.6f, ' ..
    '"p50": %.6f, "p90": %.6f, "p99": %.6f, "p999": %.6f}\n',
    summary.requests, errors.status, errors.connect + errors.read + errors.write,
    summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(90) / 1e6,
    latency:percentile(99) / 1e6, latency:percentile(99.9) / 1e6))
end
