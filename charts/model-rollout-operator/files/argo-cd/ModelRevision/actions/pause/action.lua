local os = require("os")
obj.metadata.annotations = obj.metadata.annotations or {}
obj.metadata.annotations["modelrollout.dev/pause"] = os.date("!%H%M%S") .. os.time()
return obj
