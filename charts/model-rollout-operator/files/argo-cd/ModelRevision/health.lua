-- Health of a ModelRevision: what became of the version.
local st = obj.status or {}
local outcome = st.outcome or "Pending"
local message = outcome
if st.reason ~= nil and st.reason ~= "-" then
  message = message .. ": " .. st.reason
end
if outcome == "Pending" or outcome == "Canary" then
  return {status = "Progressing", message = message}
elseif outcome == "RolledBack" or outcome == "Rejected" or outcome == "Failed" then
  return {status = "Degraded", message = message}
end
return {status = "Healthy", message = message}
