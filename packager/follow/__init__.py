"""The follower: advances and halts rollouts inside their signed plans, from lines that devices signed.

    lines.py        where the lines come from: the collector's store, or a file
    members.py      which devices are counted, fixed at the first look
    evidence.py     what a decision rests on, kept so that it can be computed again
    look.py         plan, rollout, census and decision of a channel at one time
    follower.py     acts on looks: signs, publishes, notifies
    notify.py       notifies people through a command or a URL

Rules:
- The follower believes neither the collector nor its store. It verifies each line with the key that the registry has
  for the device, and the registry with the digest that the fleet role signed. It believes the times of receipt: a
  collector can delay a line as well as hide it. Which devices are counted is fixed at the first look, so that a
  collector cannot take those out that failed.
- A halt is automatic. A resume never is. An advance stays inside the plan, which devices check again.
- What is decided is published only if the rollout is still the one that was looked at (compare-and-swap).
"""
