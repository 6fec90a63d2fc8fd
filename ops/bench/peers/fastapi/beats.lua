-- For wrk: each request is a list of heartbeats. The first argument says how many.
local count, serial = 100, 0

local function beat()
  serial = serial + 1
  local person = serial % 5000
  return string.format(
    '{"person":"p%d","computer":"laptop-%d","state":"active","keys":%d,"clicks":%d,"application":"Editor","title":"Minutes of meeting %d"}',
    person, person, serial % 180, serial % 25, serial)
end

function init(arguments)
  count = tonumber(arguments[1]) or count
end

function request()
  local beats = {}
  for at = 1, count do beats[at] = beat() end
  local headers = { ["Content-Type"] = "application/json", ["Authorization"] = "Bearer peer" }
  return wrk.format("POST", "/beats", headers, "[" .. table.concat(beats, ",") .. "]")
end
