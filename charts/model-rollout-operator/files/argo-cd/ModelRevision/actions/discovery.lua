-- Actions on a ModelRevision: the verbs that make sense for it now.
local st = obj.status or {}
local o = st.outcome or "Pending"
local trial = st.step ~= nil
local pausable = trial and st.step ~= "shadow"
local failed = o == "RolledBack" or o == "Rejected" or o == "Failed" or o == "Aborted"
local served = o == "Retired"
return {
  ["promote"] = {["disabled"] = not trial, ["displayName"] = "Promote past this step"},
  ["promote-full"] = {["disabled"] = not trial or st.step == "bake", ["displayName"] = "Promote past all steps"},
  ["pause"] = {["disabled"] = not pausable},
  ["resume"] = {["disabled"] = not pausable},
  ["abort"] = {["disabled"] = not (o == "Pending" or o == "Canary")},
  ["retry"] = {["disabled"] = not (failed or served)},
  ["rollback"] = {["disabled"] = not served, ["displayName"] = "Roll back to this revision"},
  ["restart"] = {["disabled"] = not (o == "Stable" or o == "Promoted" or o == "Canary"), ["displayName"] = "Replace its pods"},
}
