local os = require("os")
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations["modelrollout.dev/resume"] = os.date("!%H%M%S") .. os.time()
return obj
