-- wrk's requests for one case, and its figures as JSON.
-- Arguments: the case, how many rows there are to choose from, a number that makes names unique.

local headers = {
  ["Authorization"] = "Bearer SYSTEM//Sysop",
  ["Content-Type"] = "application/json",
}
local base = "/serviceorchestration/orchestration/mgmt"
local case, rows, unique
local made = 0

local function create(count)
  local locks = {}
  for i = 1, count do
    made = made + 1
    locks[i] = string.format(
      '{"serviceInstanceId":"Bench%sP%d|benchService|1.0.0","owner":"BenchOwner","expiresAt":"2099-01-01T00:00:00Z"}',
      unique, made)
  end
  return wrk.format("POST", base .. "/lock/create", headers,
    '{"locks":[' .. table.concat(locks, ",") .. ']}')
end

local function query(path, body)
  return wrk.format("POST", base .. path, headers, body)
end

local cases = {
  lock_by_id = function()
    return query("/lock/query", '{"ids":[' .. math.random(rows) .. ']}')
  end,
  locks_of_owner = function()
    return query("/lock/query", '{"owners":["Owner' .. math.random(rows / 10) - 1 .. '"]}')
  end,
  page_of_1000_locks = function()
    return query("/lock/query", '{"pagination":{"page":0,"size":1000}}')
  end,
  page_of_10_jobs = function()
    return query("/history/query", '{"pagination":{"page":0,"size":10}}')
  end,
  page_of_10_jobs_filtered = function()
    return query("/history/query", '{"statuses":["DONE"],"requesterSystems":["Requester'
      .. math.random(100) - 1 .. '"],"pagination":{"page":0,"size":10}}')
  end,
  page_of_1000_jobs = function()
    return query("/history/query", '{"pagination":{"page":0,"size":1000}}')
  end,
  deep_page_of_10_jobs = function()
    return query("/history/query", '{"pagination":{"page":5000,"size":10}}')
  end,
  job_by_id = function()
    return query("/history/query",
      string.format('{"ids":["00000000-0000-4000-8000-%012x"]}', math.random(rows) - 1))
  end,
  create_1 = function() return create(1) end,
  create_100 = function() return create(100) end,
}

function init(arguments)
  case, rows, unique = cases[arguments[1]], tonumber(arguments[2]), arguments[3]
  math.randomseed(7)
end

function request()
  return case()
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "errors": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
