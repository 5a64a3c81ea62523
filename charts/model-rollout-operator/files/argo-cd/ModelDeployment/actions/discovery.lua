-- Actions on a ModelDeployment: the verbs that make sense now. Each annotates the ModelRevision that it
-- is about. To roll back, choose the revision to go back to.
local st = obj.status or {}
local r = st.rollout or {}
local flying = st.canary ~= nil
local trial = flying and st.step ~= nil and r.stage ~= "Revert"
local pausable = trial and r.stage ~= "Shadow"
local failed = not flying and (r.stage == "Failed" or st.pinned ~= nil)
return {
  ["promote"] = {["disabled"] = not trial, ["displayName"] = "Promote past this step"},
  ["promote-full"] = {["disabled"] = not trial or r.stage == "Bake", ["displayName"] = "Promote past all steps"},
  ["pause"] = {["disabled"] = not pausable or r.pausedByUser ~= nil},
  ["resume"] = {["disabled"] = r.pausedByUser == nil},
  ["abort"] = {["disabled"] = not flying or r.stage == "Revert"},
  ["retry"] = {["disabled"] = not failed},
  ["restart"] = {["disabled"] = st.stable == nil, ["displayName"] = "Replace the pods of stable"},
}
